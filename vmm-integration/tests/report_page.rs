//! The report in a browser, on a phone and on a wide screen.

#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::fs;
use std::path::Path;
use std::process::Command;

use vmm_integration::browser::Browser;

/// Measures the page as it is laid out, into an attribute: the window's and the content's width, how
/// many figures there are and how many are not drawn, the smallest text in them, and how much of the
/// page lies to the right of the window, scrolling tables left out.
const CHECK: &str = "<script>
addEventListener('load', () => {
  const figures = [...document.querySelectorAll('figure > svg')];
  const drawn = svg => {
    const box = svg.getBoundingClientRect();
    return box.width > 250 && box.height > 150 && svg.querySelectorAll('path').length > 3;
  };
  const text = svg => 12 * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  const outside = [...document.querySelectorAll('body *')].filter(element =>
    !element.closest('.scroll, svg') && element.getBoundingClientRect().right > innerWidth + 0.5);
  document.documentElement.dataset.check = [
    innerWidth, document.scrollingElement.scrollWidth, figures.length,
    figures.filter(svg => !drawn(svg)).length, Math.min(...figures.map(text)).toFixed(1),
    outside.length,
  ].join(' ');
});
</script>";

fn lab(args: &[&str], folder: &Path) {
    let output = Command::new(env!("CARGO_BIN_EXE_balloon-lab"))
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_report_fits_a_phone_and_a_wide_screen_and_draws_every_figure() {
    let name = "the_report_fits_a_phone_and_a_wide_screen_and_draws_every_figure";
    let Some(browser) = Browser::for_test(name) else { return };
    let folder = tempfile::tempdir().unwrap();
    let small = ["--set", "memory=512M", "--set", "seconds=30", "--out", "out"];
    let churn = "churn=uniform,bursty,sweep";
    lab(&[&["bench", "trackers", "--set", churn][..], &small].concat(), folder.path());
    let scale = ["bench", "scale", "--set", "sizes=1G,1T", "--set", "passes=1", "--out", "out"];
    lab(&[&scale[..], &["--set", "populated=1G"]].concat(), folder.path());
    lab(&["report", "--from", "out"], folder.path());

    let report = folder.path().join("out/report.html");
    let page = fs::read_to_string(&report).unwrap();
    let checked = folder.path().join("checked.html");
    fs::write(&checked, page.replace("</body>", &format!("{CHECK}</body>"))).unwrap();
    let figures = page.matches("<figure>").count();
    assert!(figures >= 10, "{figures}");

    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/screenshots");
    fs::create_dir_all(&pictures).unwrap();
    for (what, size) in [("narrow", (360, 740)), ("phone", (390, 844)), ("wide", (1600, 1000))] {
        let loaded = browser.load(&checked, size).unwrap();
        assert_eq!(loaded.console, [""; 0], "{what}");
        let (_, rest) = loaded.html.split_once("data-check=\"").unwrap();
        let numbers: Vec<f64> =
            rest.split('"').next().unwrap().split(' ').map(|n| n.parse().unwrap()).collect();
        let [window, content, drawn, missing, text, outside] = numbers[..] else {
            panic!("{numbers:?}")
        };
        assert!((window - f64::from(size.0)).abs() < 0.5, "{what}: a window of {window}");
        assert!(content <= window, "{what}: {content} pixels wide in {window}");
        assert!((drawn - figures as f64).abs() < 0.5, "{what}: {drawn} of {figures} figures");
        assert!(missing == 0.0, "{what}: {missing} figures are not drawn");
        assert!(text >= 9.0, "{what}: text of {text} pixels");
        assert!(outside == 0.0, "{what}: {outside} elements lie outside");

        let picture = pictures.join(format!("{what}.png"));
        browser.screenshot(&report, size, &picture).unwrap();
        let bytes = fs::read(&picture).unwrap();
        // PNG: width and height stand in the first chunk.
        let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((number(16), number(20)), size, "{what}");
    }
}

/// The check itself must be able to fail.
#[test]
fn a_page_that_is_too_wide_and_complains_is_noticed() {
    let name = "a_page_that_is_too_wide_and_complains_is_noticed";
    let Some(browser) = Browser::for_test(name) else { return };
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("page.html");
    let wide = "<meta name=viewport content='width=device-width'><div style='width:900px'>x</div>";
    fs::write(&page, format!("<!doctype html><body>{wide}<script>nothing.here()</script>{CHECK}"))
        .unwrap();
    let loaded = browser.load(&page, (390, 844)).unwrap();
    assert!(loaded.html.contains("data-check=\"390 9"), "{}", loaded.html);
    assert!(loaded.console.iter().any(|line| line.contains("nothing")), "{:?}", loaded.console);
}
