// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Fetching Debian packages with apt itself, without installing anything and without root.
//!
//! apt gets a state of its own in a folder: lists, cache and an empty package database, so that
//! it resolves dependencies as for an empty machine and neither reads nor changes what is
//! installed. From the machine's own configuration come the mirror, its keys and everything about
//! the network (proxies, certificates).

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use deb822_fast::{Deb822, Paragraph};

use super::SetupEvent;
use super::packages::{Package, Pins};

/// The Debian archive as this machine is configured to reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Archive {
    /// Address of the mirror.
    uri: String,
    /// Fields that say how its signature is checked, in the form of a `.sources` file.
    trust: Vec<String>,
}

impl Archive {
    /// Reads the machine's own apt configuration.
    pub(crate) fn of_this_machine() -> Result<Self> {
        let mut apt = Command::new("apt-get");
        apt.args(["indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)|$(COMPONENT)"]);
        let mut uri = archive_of_targets(&output(apt.arg("Created-By: Packages"))?);
        if uri.is_none() {
            // apt lists only what it has downloaded, which in a fresh container is nothing.
            let mut apt = Command::new("apt-get");
            uri = archive_of_releases(&output(apt.args(["-q", "update", "--print-uris"]))?);
        }
        let uri = uri.context(
            "apt is configured on this machine, but with no Debian archive that it knows of \
             (Debian 12, 13 and the images based on them have one; `apt-get update` may help apt \
             to recognise a mirror)",
        )?;
        let mut trust = Vec::new();
        for file in source_files()? {
            let text = fs::read_to_string(&file).unwrap_or_default();
            trust = if file.extension().is_some_and(|ending| ending == "sources") {
                trust_in_deb822(&text, &uri)
            } else {
                trust_in_list(&text, &uri)
            };
            if !trust.is_empty() {
                break;
            }
        }
        Ok(Self { uri, trust })
    }
}

/// Of apt's list of index targets the address of the Debian archive proper, as the signed Release
/// files say it.
fn archive_of_targets(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| match line.split('|').collect::<Vec<_>>()[..] {
        ["Debian", "Debian", uri, "main"] => Some(uri.to_owned()),
        _ => None,
    })
}

/// The same of the Release files that apt would fetch, `'URI/dists/SUITE/InRelease' …`, where
/// nothing but the path can tell.
fn archive_of_releases(uris: &str) -> Option<String> {
    uris.lines().find_map(|line| {
        let (uri, _) = line.strip_prefix('\'')?.split_once("/dists/")?;
        uri.ends_with("/debian").then(|| uri.to_owned())
    })
}

/// The files in which apt's sources are configured.
fn source_files() -> Result<Vec<PathBuf>> {
    let list = "Dir::Etc::sourcelist/f";
    let parts = "Dir::Etc::sourceparts/d";
    let shell = output(Command::new("apt-config").args(["shell", "LIST", list, "PARTS", parts]))?;
    let value = |name: &str| {
        let line = shell.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(PathBuf::from(line.trim_matches('\'')))
    };
    let mut files: Vec<PathBuf> = value("LIST").into_iter().collect();
    // A machine may well have only one of the two.
    if let Some(entries) = value("PARTS").and_then(|folder| fs::read_dir(folder).ok()) {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    Ok(files)
}

/// The trust fields of the stanza with this address in a `.sources` file. A key may be given in full,
/// on continuation lines.
fn trust_in_deb822(text: &str, uri: &str) -> Vec<String> {
    // apt ignores a file that it cannot read, and says so itself.
    let Ok(sources) = text.parse::<Deb822>() else { return Vec::new() };
    let has_uri = |stanza: &&Paragraph| {
        let uris = stanza.get("URIs").unwrap_or_default();
        uris.split_whitespace().any(|word| same_uri(word, uri))
    };
    let field = |stanza: &Paragraph, name| {
        let value = stanza.get(name)?.replace('\n', "\n ");
        Some(format!("{name}: {value}"))
    };
    let stanza = sources.iter().find(has_uri);
    let fields = ["Signed-By", "Trusted"].into_iter();
    stanza.map_or(Vec::new(), |stanza| fields.filter_map(|name| field(stanza, name)).collect())
}

/// The same of a `.list` file: `deb [signed-by=… trusted=…] URI SUITE COMPONENT…`.
fn trust_in_list(text: &str, uri: &str) -> Vec<String> {
    let entry = text.lines().find(|line| {
        line.trim_start().starts_with("deb") && line.split_whitespace().any(|w| same_uri(w, uri))
    });
    let options = entry.and_then(|line| line.split_once('[')?.1.split_once(']'));
    let words = options.map_or("", |(options, _)| options).split_whitespace();
    words
        .filter_map(|word| match word.split_once('=')? {
            ("signed-by", value) => Some(format!("Signed-By: {}", value.replace(',', " "))),
            ("trusted", value) => Some(format!("Trusted: {value}")),
            _ => None,
        })
        .collect()
}

fn same_uri(a: &str, b: &str) -> bool {
    a.trim_end_matches('/') == b.trim_end_matches('/')
}

/// apt with a state of its own.
pub(crate) struct PrivateApt {
    folder: PathBuf,
}

impl PrivateApt {
    /// Sets the state up in `folder`, which may hold what an interrupted run left.
    ///
    /// `suites` are those of `archive` to use; the last one is preferred.
    pub(crate) fn new(folder: &Path, archive: &Archive, suites: &[&str]) -> Result<Self> {
        Self::with_sources(folder, sources(archive, suites), suites.last().unwrap_or(&""))
    }

    /// The same for the source packages of a suite.
    pub(crate) fn for_sources(folder: &Path, archive: &Archive, suite: &str) -> Result<Self> {
        let sources = sources(archive, &[suite]);
        let sources = sources.replace("Types: deb\n", "Types: deb-src\n");
        Self::with_sources(folder, sources.replace("Targets: Packages\n", ""), suite)
    }

    fn with_sources(folder: &Path, sources: String, default_release: &str) -> Result<Self> {
        for sub in ["lists/partial", "archives/partial", "log"] {
            let path = folder.join(sub);
            fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        }
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
        };
        write("status", String::new())?;
        write("debian.sources", sources)?;
        write("apt.conf", configuration(folder, default_release))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Returns the newest version of `packages` and of all that they depend on.
    pub(crate) fn newest(&self, packages: &[&str]) -> Result<Vec<Package>> {
        output(self.apt_get().args(["-q", "update"]))?;
        self.plan(&owned(packages))
    }

    /// Downloads `packages` with all that they depend on, at the versions of `pins`, and returns the
    /// files. apt checks the files against the signed index, and the index is checked against `pins`.
    ///
    /// Complete files of an earlier run are not fetched again.
    pub(crate) fn download(
        &self,
        packages: &[&str],
        pins: &Pins,
        events: &mut dyn FnMut(SetupEvent),
    ) -> Result<Vec<PathBuf>> {
        events(SetupEvent::Step("reading the package index".to_owned()));
        output(self.apt_get().args(["-q", "update"]))?;

        let mut wanted = pins.arguments();
        let mut plan = self.plan(&wanted);
        // No version is found that the index does not list.
        if wanted.is_empty() || plan.is_err() {
            wanted = owned(packages);
            plan = self.plan(&wanted);
            let differences = pins.differences(plan.as_deref().unwrap_or_default());
            events(SetupEvent::Warning(format!(
                "the mirror no longer has the pinned packages, using the newest: {}. `cargo xtask \
                 setup --update-packages` pins them",
                differences.join(", ")
            )));
        }
        let plan = plan?;
        pins.check(&plan)?;
        let total_bytes = plan.iter().map(|package| package.bytes).sum();
        events(SetupEvent::Download { packages: plan.len(), total_bytes });

        let mut fetch = self.install(&wanted);
        fetch.args(["--download-only", "-o", "APT::Status-Fd=1"]);
        run_with_lines(&mut fetch, &mut |line| {
            if let Some(fraction) = fraction_of_status_line(line) {
                events(SetupEvent::Progress { fraction });
            }
        })?;

        let archives = self.folder.join("archives");
        let mut files = Vec::new();
        for entry in
            fs::read_dir(&archives).with_context(|| format!("listing {}", archives.display()))?
        {
            let path = entry.with_context(|| format!("listing {}", archives.display()))?.path();
            if path.extension().is_some_and(|ending| ending == "deb") {
                files.push(path);
            }
        }
        ensure!(!files.is_empty(), "apt reported success but left no package in {archives:?}");
        files.sort();
        Ok(files)
    }

    /// Returns what apt would fetch for `packages`, each `NAME` or `NAME=VERSION`.
    fn plan(&self, packages: &[String]) -> Result<Vec<Package>> {
        // Without the option it prints the oldest checksum that the index has.
        let options = ["--print-uris", "-o", "Acquire::ForceHash=SHA256"];
        let uris = output(self.install(packages).args(options))?;
        uris.lines().filter(|line| line.starts_with('\'')).map(package_of_uri_line).collect()
    }

    fn install(&self, packages: &[String]) -> Command {
        let mut apt = self.apt_get();
        apt.args(["-q", "-y", "install"]).args(packages);
        apt
    }

    /// apt-get with this state.
    pub(crate) fn apt_get(&self) -> Command {
        let mut apt = Command::new("apt-get");
        // Read after all files of the machine, so that it has the last word.
        apt.arg("-c").arg(self.folder.join("apt.conf"));
        apt
    }
}

/// The `.sources` file. Only package lists: the other indices are larger than the packages.
fn sources(archive: &Archive, suites: &[&str]) -> String {
    let mut lines = vec![
        "Types: deb".to_owned(),
        format!("URIs: {}", archive.uri),
        format!("Suites: {}", suites.join(" ")),
        "Components: main".to_owned(),
        "Architectures: amd64".to_owned(),
        "Targets: Packages".to_owned(),
    ];
    lines.extend(archive.trust.iter().cloned());
    lines.join("\n") + "\n"
}

/// apt's configuration, on top of the machine's own.
fn configuration(folder: &Path, default_release: &str) -> String {
    let folder = folder.display();
    format!(
        r#"// Hooks of the machine are about its own packages.
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Install-Pkgs;
#clear DPkg::Post-Invoke;
#clear APT::Architectures;
Dir::State "{folder}";
Dir::State::lists "{folder}/lists";
Dir::State::status "{folder}/status";
Dir::State::extended_states "{folder}/extended_states";
Dir::Cache "{folder}";
Dir::Cache::archives "{folder}/archives";
Dir::Log "{folder}/log";
Dir::Etc::sourcelist "{folder}/debian.sources";
Dir::Etc::sourceparts "-";
Dir::Etc::preferences "-";
Dir::Etc::preferencesparts "-";
APT::Sandbox::User "root";
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Default-Release "{default_release}";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Get::Assume-Yes "true";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
"#
    )
}

/// The package in a line of `--print-uris`: `'URI' NAME_VERSION_ARCHITECTURE.deb SIZE SHA256:SUM`,
/// where `%3a` in the version stands for a colon.
fn package_of_uri_line(line: &str) -> Result<Package> {
    let parse = || {
        let mut words = line.split_once("' ")?.1.split_whitespace();
        let mut file = words.next()?.split('_');
        Some(Package {
            name: file.next()?.to_owned(),
            version: file.next()?.replace("%3a", ":"),
            bytes: words.next()?.parse().ok()?,
            sha256: words.next()?.strip_prefix("SHA256:")?.to_owned(),
        })
    };
    parse().with_context(|| format!("apt's plan has an unexpected line (got {line:?})"))
}

fn owned(packages: &[&str]) -> Vec<String> {
    packages.iter().map(|&package| package.to_owned()).collect()
}

/// How far a download is, 0 to 1, from apt's `dlstatus:ITEM:PERCENT:TEXT`.
pub(crate) fn fraction_of_status_line(line: &str) -> Option<f64> {
    let percent: f64 = line.strip_prefix("dlstatus:")?.split(':').nth(1)?.parse().ok()?;
    Some((percent / 100.0).clamp(0.0, 1.0))
}

/// Runs a program to its end and returns what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let mut all = String::new();
    run_with_lines(command, &mut |line| {
        all.push_str(line);
        all.push('\n');
    })?;
    Ok(all)
}

/// Runs a program to its end and hands over each line that it prints.
pub(crate) fn run_with_lines(command: &mut Command, each: &mut dyn FnMut(&str)) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    // Messages are matched and shown, so they had better be in one language.
    command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().with_context(|| {
            format!("starting {name}: setting the guest up needs the tools of Debian")
        })?;
    let (Some(stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
        bail!("{name} has no output pipes");
    };
    // Both pipes have to be read at once, or the program may block on the other one.
    let errors = thread::spawn(move || {
        let mut text = Vec::new();
        // An incomplete message is better than none.
        let _ = stderr.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.with_context(|| format!("reading what {name} prints"))?;
        each(&String::from_utf8_lossy(&line));
    }
    let status = child.wait().with_context(|| format!("waiting for {name}"))?;
    let errors = errors.join().unwrap_or_default();
    ensure!(status.success(), "{name} ended with {status}:\n{}", errors.trim_end());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_recognised_by_its_release_file() {
        let targets = "Debian|Debian-Security|http://m.example/debian-security/|main\n\
                       Other|Debian|https://x.example/apt/|main\n\
                       Debian|Debian|http://m.example/deb/|contrib\n\
                       Debian|Debian|http://n.example/deb/|main\n";
        assert_eq!(archive_of_targets(targets).unwrap(), "http://n.example/deb/");
        assert_eq!(archive_of_targets("Ubuntu|Ubuntu|http://m.example/debian/|main"), None);
        assert_eq!(archive_of_targets(""), None);
    }

    #[test]
    fn before_the_first_update_the_path_decides() {
        let uris = "Reading…\n'https://x.example/apt/dists/a/InRelease' x 0\n\
                    'http://m.example/debian-security/dists/a-security/InRelease' y 0\n\
                    'http://m.example/debian/dists/a/InRelease' z 0\n";
        assert_eq!(archive_of_releases(uris).unwrap(), "http://m.example/debian");
        assert_eq!(archive_of_releases("'http://m.example/ubuntu/dists/a/InRelease' x 0"), None);
    }

    #[test]
    fn keys_are_found_in_sources_files() {
        let text = "# comment\nTypes: deb\nURIs: http://m.example/sec\nSigned-By: /no.gpg\n\n\
                    Types: deb\nURIs: http://n.example/debian http://m.example/debian\n\
                    Suites: a b\nSigned-By:\n -----BEGIN\n .\n key\nTrusted: no\n";
        assert_eq!(
            trust_in_deb822(text, "http://m.example/debian/"),
            ["Signed-By: \n -----BEGIN\n .\n key", "Trusted: no"]
        );
        assert!(trust_in_deb822(text, "http://other.example/").is_empty());
    }

    #[test]
    fn keys_are_found_in_list_files() {
        let text = "# deb http://m.example/debian x\n\
                    deb [arch=amd64 signed-by=/a.gpg,/b.gpg] http://m.example/debian x main\n";
        assert_eq!(trust_in_list(text, "http://m.example/debian/"), ["Signed-By: /a.gpg /b.gpg"]);
        assert!(
            trust_in_list("deb http://m.example/debian x", "http://m.example/debian").is_empty()
        );
    }

    #[test]
    fn lines_of_apt_are_read() {
        let line = "'http://m.example/p/libx_1%2b2_amd64.deb' libx_1+2_amd64.deb 160548 SHA256:ab";
        let package = package_of_uri_line(line).unwrap();
        assert_eq!((package.name.as_str(), package.version.as_str()), ("libx", "1+2"));
        assert_eq!((package.bytes, package.sha256.as_str()), (160_548, "ab"));
        let line = "'http://m.example/p/y.deb' y_1%3a2-3_amd64.deb 1 SHA256:ab";
        assert_eq!(package_of_uri_line(line).unwrap().version, "1:2-3");
        assert!(
            package_of_uri_line("'http://m.example/p/y.deb' y_1_amd64.deb 1 MD5Sum:ab").is_err()
        );
        assert_eq!(fraction_of_status_line("dlstatus:7:25.0000:Retrieving file 7"), Some(0.25));
        assert_eq!(fraction_of_status_line("Get:1 http://m.example"), None);
    }

    #[test]
    fn a_missing_program_says_so() {
        let error = output(&mut Command::new("/nonexistent/apt-get")).unwrap_err();
        assert!(format!("{error:#}").contains("tools of Debian"), "{error:#}");
        let error = output(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err();
        assert!(format!("{error:#}").contains("why"), "{error:#}");
    }
}
