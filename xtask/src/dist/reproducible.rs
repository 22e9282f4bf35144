// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether the same sources make the same bytes: builds all that is distributed twice, as two people would on
//! two machines, and compares.

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File, FileTimes};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};

use super::about::NAME;
use super::date;
use super::folder::emptied;
use super::linking::Linking;
use crate::cargo::{ROOT, root, run};
use crate::files;

/// The copy of the sources, in the folder of a build.
const SOURCES: &str = "sources";

/// How much of a difference is shown.
const SHOWN_BYTES: usize = 16;

/// How a program begins.
const ELF: &[u8] = b"\x7fELF";

/// What is different of a build besides its folders.
struct Place {
    /// Below the folder of the check.
    folder: &'static str,
    umask: &'static str,
    locale: &'static str,
    zone: &'static str,
    /// When the sources were changed last, in seconds since 1970. Now if there is none.
    changed: Option<u64>,
    /// Whether cargo has its files under another name.
    has_own_home: bool,
}

const PLACES: [Place; 2] = [
    Place {
        folder: "a",
        umask: "022",
        locale: "C",
        zone: "UTC",
        changed: None,
        has_own_home: false,
    },
    Place {
        folder: "a longer path/to another folder",
        umask: "077",
        locale: "C.UTF-8",
        zone: "Pacific/Chatham",
        changed: Some(1_000_000_000),
        has_own_home: true,
    },
];

/// Builds packages and static program twice, and compares them.
///
/// # Errors
/// If something does not build, or a file differs: names each such file and the first place.
pub(super) fn check() -> Result<()> {
    let folder = emptied("twice")?;
    // Both copies are of one state of the sources.
    let date = date::seconds()?;
    for place in &PLACES {
        copy(&folder.join(place.folder).join(SOURCES), place.changed)?;
    }
    let [here, there] = PLACES.map(|place| build(&place, &folder.join(place.folder), date));
    let (here, there) = (here?, there?);
    let mut files = BTreeSet::new();
    for built in [&here, &there] {
        list(built, Path::new("dist"), &mut files)?;
    }
    let differences = compare(&here, &there, &files)?;
    ensure!(
        differences.is_empty(),
        "the same sources made other files in {} than in {}:\n{}",
        there.display(),
        here.display(),
        differences.join("\n")
    );
    println!("reproducible: {} files are the same, byte for byte:", files.len());
    files.iter().for_each(|file| println!("    {}", file.display()));
    // What was built is large.
    fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())
}

/// Builds everything from a copy of the sources; returns where it was built.
fn build(place: &Place, folder: &Path, date: i64) -> Result<PathBuf> {
    let (sources, built) = (folder.join(SOURCES), folder.join("built"));
    for options in [&[][..], &["--static"]] {
        println!("build in {}: dist {}", folder.display(), options.join(" "));
        // The mask of this process is that of its other threads.
        let mut command = Command::new("sh");
        command.args(["-c", "umask \"$1\" && shift && exec \"$@\"", "sh", place.umask]);
        // Also if another command builds this program meanwhile.
        command.arg(format!("/proc/{}/exe", process::id())).arg("dist").args(options);
        command.env(ROOT, &sources).env("CARGO_TARGET_DIR", &built);
        command.env(date::VARIABLE, date.to_string());
        command.env("LC_ALL", place.locale).env("TZ", place.zone);
        if place.has_own_home {
            command.env("CARGO_HOME", home(&folder.join("home"))?);
        }
        run(&mut command)?;
        if options.is_empty() {
            // Difficult to compare in a package, and the static one takes its place.
            let program = built.join(Linking::Dynamic.target()?).join("release").join(NAME);
            fs::copy(&program, built.join("dist").join(NAME))
                .with_context(|| program.display().to_string())?;
        }
    }
    Ok(built)
}

/// Copies the sources, with the time of their last change.
fn copy(to: &Path, changed: Option<u64>) -> Result<()> {
    let from = root();
    for file in files::known_to_git(&from)? {
        let to = to.join(&file);
        to.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::copy(from.join(&file), &to).with_context(|| to.display().to_string())?;
        if let Some(seconds) = changed {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            let times = FileTimes::new().set_modified(time);
            let file = File::options().append(true).open(&to);
            file.and_then(|file| file.set_times(times))
                .with_context(|| to.display().to_string())?;
        }
    }
    Ok(())
}

/// A folder with the files of cargo's own, so that packages are compiled under another path.
fn home(folder: &Path) -> Result<&Path> {
    if folder.exists() {
        return Ok(folder);
    }
    fs::create_dir_all(folder)?;
    let own = env::var_os("CARGO_HOME").map(PathBuf::from);
    let own = own.or_else(|| Some(env::home_dir()?.join(".cargo"))).context("no CARGO_HOME")?;
    for entry in fs::read_dir(&own).with_context(|| own.display().to_string())? {
        let entry = entry?;
        symlink(entry.path(), folder.join(entry.file_name()))?;
    }
    Ok(folder)
}

/// Adds the files below `folder` of `built`.
fn list(built: &Path, folder: &Path, files: &mut BTreeSet<PathBuf>) -> Result<()> {
    let path = built.join(folder);
    for entry in fs::read_dir(&path).with_context(|| path.display().to_string())? {
        let entry = entry?;
        let file = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(built, &file, files)?;
        } else {
            files.insert(file);
        }
    }
    Ok(())
}

/// A line for each file that differs.
fn compare(here: &Path, there: &Path, files: &BTreeSet<PathBuf>) -> Result<Vec<String>> {
    let read = |folder: &Path, file: &Path| {
        let path = folder.join(file);
        fs::read(&path).with_context(|| path.display().to_string())
    };
    let mut differences = Vec::new();
    for file in files {
        let name = file.display();
        match (here.join(file).exists(), there.join(file).exists()) {
            (true, true) => {
                let (one, other) = (read(here, file)?, read(there, file)?);
                differences.extend(difference(&one, &other).map(|text| format!("{name}: {text}")));
            }
            (true, false) => differences.push(format!("{name}: only the first build has it")),
            _ => differences.push(format!("{name}: only the second build has it")),
        }
    }
    Ok(differences)
}

/// Where two files differ first, and what is there.
fn difference(one: &[u8], other: &[u8]) -> Option<String> {
    let same = one.iter().zip(other).take_while(|(one, other)| one == other).count();
    if same == one.len() && same == other.len() {
        return None;
    }
    let shown = |bytes: &[u8]| match &bytes[same..bytes.len().min(same + SHOWN_BYTES)] {
        [] => "the end".to_owned(),
        place => format!("\"{}\"", place.escape_ascii()),
    };
    let texts = if one.starts_with(ELF) { texts(one, other) } else { None };
    Some(format!(
        "{} and {} bytes, from byte {same} on {} and {}{}",
        one.len(),
        other.len(),
        shown(one),
        shown(other),
        texts.unwrap_or_default()
    ))
}

/// The first text of each of two programs that the other does not have. Where a path has another length, so has
/// all behind it, and the first bytes that differ are those that say where things are.
fn texts(one: &[u8], other: &[u8]) -> Option<String> {
    fn of(program: &[u8]) -> impl Iterator<Item = &[u8]> {
        let texts = program.split(|byte| !byte.is_ascii_graphic());
        texts.filter(|text| text.len() >= SHOWN_BYTES)
    }
    let only = |here: &[u8], there: &[u8]| {
        let others: BTreeSet<&[u8]> = of(there).collect();
        let text = of(here).find(|text| !others.contains(text))?;
        Some(String::from_utf8_lossy(text).into_owned())
    };
    let (here, there) = (only(one, other)?, only(other, one)?);
    Some(format!("; only one has the text\n    {here}\nand only the other\n    {there}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_difference_is_named() {
        assert_eq!(difference(b"same", b"same"), None);
        assert_eq!(
            difference(b"at /a/b.rs\0", b"at /c/b.rs\0").unwrap(),
            "11 and 11 bytes, from byte 4 on \"a/b.rs\\x00\" and \"c/b.rs\\x00\""
        );
        assert_eq!(
            difference(b"same", b"same and more").unwrap(),
            "4 and 13 bytes, from byte 4 on the end and \" and more\""
        );
    }

    #[test]
    fn text_that_differs_in_a_program_is_named() {
        let program = |offset: u8, path: &str| {
            [ELF, &[offset], b"the same in both of them\0", path.as_bytes()].concat()
        };
        let (one, other) =
            (program(1, "/home/one/src/lib.rs"), program(2, "/home/other/src/lib.rs"));
        let said = difference(&one, &other).unwrap();
        assert_eq!(
            said,
            "50 and 52 bytes, from byte 4 on \"\\x01the same in bot\" and \"\\x02the same in bot\"; \
             only one has the text\n    /home/one/src/lib.rs\nand only the other\n    \
             /home/other/src/lib.rs"
        );
    }

    #[test]
    fn files_of_one_build_only_are_named() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (folder, file) in [(&here, "a"), (&here, "both"), (&there, "both"), (&there, "c")] {
            fs::create_dir_all(folder.path().join("dist/packages")).unwrap();
            fs::write(folder.path().join("dist/packages").join(file), "text").unwrap();
        }
        let mut files = BTreeSet::new();
        list(here.path(), Path::new("dist"), &mut files).unwrap();
        list(there.path(), Path::new("dist"), &mut files).unwrap();
        let said = compare(here.path(), there.path(), &files).unwrap();
        assert_eq!(
            said,
            [
                "dist/packages/a: only the first build has it",
                "dist/packages/c: only the second build has it"
            ]
        );
    }
}
