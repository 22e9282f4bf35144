// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The report in a browser, on a phone, a tablet and a wide screen, light and dark.

#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::fs;
use std::path::Path;
use std::process::Command;

use balloon_lab::machine::Machine;
use balloon_lab::store::{Failure, Store, Verdict, VerdictKind};
use vmm_integration::fetch::browser::{Browser, Loaded, Screen};

/// See there.
const CHECK: &str = include_str!("report_page.js");
/// Smaller text is hard to read on a phone, in CSS pixels.
const LEGIBLE: f64 = 12.0;

fn lab(args: &[&str], folder: &Path) -> i32 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_balloon-lab"));
    command.args(args).current_dir(folder).output().unwrap().status.code().unwrap()
}

/// A page with the check in it.
fn checked(page: &str) -> String {
    page.replace("</body>", &format!("<script>{CHECK}</script></body>"))
}

/// What the check has left: the numbers, and what is wrong.
fn found(loaded: &Loaded) -> (Vec<f64>, Vec<&str>) {
    let attribute = |name: &str| {
        let (_, rest) = loaded.html.split_once(&format!("data-{name}=\"")).unwrap();
        rest.split('"').next().unwrap()
    };
    let numbers = attribute("check").split(' ').map(|number| number.parse().unwrap()).collect();
    (numbers, attribute("problems").lines().collect())
}

/// Cases of every sort: tables with few and many columns, curves, the closed form, maps, verdicts,
/// and what is to be said first: a loss, a failure, a file that is no record.
fn keep_some(folder: &Path) {
    let small = ["--set", "memory=512M", "--set", "seconds=30", "--out", "out"];
    let churn = "churn=uniform,bursty,sweep";
    assert_eq!(lab(&[&["bench", "trackers", "--set", churn][..], &small].concat(), folder), 0);
    let scale = ["bench", "scale", "--set", "sizes=1G,256G,1T,16T", "--set", "passes=1"];
    let out = ["--set", "populated=1G", "--out", "out"];
    assert_eq!(lab(&[&scale[..], &out].concat(), folder), 0);
    let placement = ["bench", "placement", "--set", "turns=1", "--set", "allocations=100"];
    let short = ["--set", "seconds=0.01", "--set", "race=0.01", "--out", "out"];
    assert_eq!(lab(&[&placement[..], &short].concat(), folder), 0);
    let hypotheses = ["freeze-during-report", "queue-numbering", "merging-loses-mark"];
    let cases = hypotheses.iter().flat_map(|case| ["--case", case]);
    let hypotheses: Vec<&str> = cases.chain(["--out", "out"]).collect();
    assert_eq!(lab(&[&["race", "hypotheses"][..], &hypotheses].concat(), folder), 0);
    let store = Store::new(folder.join("out"));
    let mut lost = store.get("hypotheses", "queue-numbering").unwrap();
    lost.verdict = Some(Verdict { kind: VerdictKind::Lost, text: "4096 bytes".to_owned() });
    store.put(&lost).unwrap();
    let failure = Failure {
        experiment: "reclaim".to_owned(),
        case: "linux-4k-ours".to_owned(),
        command: "cargo xtask lab bench reclaim --case linux-4k-ours --seed 1".to_owned(),
        machine: Machine::here(),
        error: "the guest has ended".to_owned(),
    };
    store.put_failure(&failure).unwrap();
    fs::write(folder.join("out/hypotheses/half.json"), "{\"experiment\": \"pa").unwrap();
}

#[test]
#[ignore = "needs a browser: cargo xtask test"]
fn the_report_is_whole_and_legible_on_every_screen() {
    let browser = Browser::ensure().unwrap();
    let folder = tempfile::tempdir().unwrap();
    keep_some(folder.path());
    assert_eq!(lab(&["report", "--from", "out"], folder.path()), 1, "a file is no record");

    let report = folder.path().join("out/report.html");
    let light = fs::read_to_string(&report).unwrap();
    let figures = light.matches("<figure>").count();
    assert!(figures >= 15, "{figures}");
    for section in ["summary", "trackers", "scale", "placement", "hypotheses", "reclaim"] {
        assert!(light.contains(&format!("<section id=\"{section}\"")), "{section}");
    }
    let (summary, _) = light.split_once("</section>").unwrap();
    for text in
        ["1 failed, 1 LOST", "the guest has ended", "4096 bytes", "half.json is not a record"]
    {
        assert!(summary.contains(text), "{text}: {summary}");
    }
    let at = |name: &str| light.find(&format!("<b>busy-{name}</b>")).unwrap();
    assert!(at("1G") < at("256G") && at("256G") < at("1T") && at("1T") < at("16T"));

    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/lab/screenshots");
    fs::create_dir_all(&pictures).unwrap();
    let page = folder.path().join("checked.html");
    fs::write(&page, checked(&light)).unwrap();
    let screens = [
        ("phone", Screen { size: (360, 740), dark: false }),
        ("phone-dark", Screen { size: (390, 844), dark: true }),
        ("tablet", Screen { size: (768, 1024), dark: false }),
        ("wide", Screen { size: (1600, 1000), dark: false }),
    ];
    let all = browser.load(&page, &screens.map(|(_, screen)| screen)).unwrap();
    for ((name, Screen { size, .. }), loaded) in screens.into_iter().zip(all) {
        fs::write(pictures.join(format!("{name}.png")), &loaded.picture).unwrap();
        assert_eq!(loaded.console, [""; 0], "{name}");
        let (numbers, problems) = found(&loaded);
        assert_eq!(problems, [""; 0], "{name}");
        let [window, content, drawn, text] = numbers[..] else { panic!("{numbers:?}") };
        assert!((window - f64::from(size.0)).abs() < 0.5, "{name}: a window of {window}");
        assert!(content <= window, "{name}: {content} pixels wide in {window}");
        assert!((drawn - figures as f64).abs() < 0.5, "{name}: {drawn} of {figures} figures");
        assert!(text >= LEGIBLE, "{name}: text of {text} pixels");
        // PNG: the first chunk holds width and height.
        let number = |at: usize| u32::from_be_bytes(loaded.picture[at..at + 4].try_into().unwrap());
        assert_eq!((number(16), number(20)), size, "{name}");
    }
}

/// The check itself must be able to fail.
#[test]
#[ignore = "needs a browser: cargo xtask test"]
fn what_is_wrong_with_a_page_is_noticed() {
    let browser = Browser::ensure().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("page.html");
    let page = "<!doctype html><meta name=viewport content='width=device-width'><body id=a>\
        <div style='width:900px'>wide</div><div style='overflow-x:auto' id=a>x</div>\
        <p style='color:#ccc;font-size:8px'>pale and small</p><a href='#nowhere'>link</a>\
        <figure><svg viewBox='0 0 300 200' width=300><text x=9 y=50>one</text>\
        <text x=9 y=52>two</text><text x=290 y=90>border</text></svg></figure>\
        <div class=holder><table><thead style='position:absolute;left:-999px'><tr><th>x</th></tr></thead>\
        <tr><td data-case=c>1</td></tr></table></div><script>nothing.here()</script></body>";
    fs::write(&file, checked(page)).unwrap();
    let loaded =
        browser.load(&file, &[Screen { size: (390, 844), dark: false }]).unwrap().remove(0);
    assert!(loaded.console.iter().any(|line| line.contains("nothing")), "{:?}", loaded.console);
    let (numbers, problems) = found(&loaded);
    assert!(numbers[1] > numbers[0] && numbers[3] < LEGIBLE, "{numbers:?}");
    for wrong in [
        "outside: DIV",
        "scrolls: DIV",
        "contrast 1.6: P",
        "not drawn: svg",
        "labels touch: text. in a (one) and text. in a (two)",
        "label cut off: text. in a (border)",
        "whose value: TD",
        "not to be had again: FIGURE",
        "leads nowhere: A",
        "twice: a",
        "not in words: svg",
    ] {
        assert!(
            problems.iter().any(|problem| problem.starts_with(wrong)),
            "{wrong}: {problems:#?}"
        );
    }
}
