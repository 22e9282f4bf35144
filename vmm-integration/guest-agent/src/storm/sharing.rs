// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether two processes share a page table, told from the faults that the second one needs.

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use guest_agent::hugetlb::{Arrangement, Sharing};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::mapped::Mapped;
use super::task::faults;

/// Makes the program run as the two processes.
pub(crate) const ROLE: &str = "sharing";

/// Has two processes map the file at `path`, each as it is told, and counts their faults.
pub(super) fn of(path: &str, pages: usize, maps: [Arrangement; 2]) -> Result<Sharing> {
    let mut command = Command::new("/proc/self/exe");
    command.args([ROLE, path, &pages.to_string(), &serde_json::to_string(&maps)?]);
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.context("starting two processes")?;
    ensure!(output.status.success(), "two processes ended with {}: see the console", output.status);
    serde_json::from_slice(&output.stdout).context("reading what two processes say")
}

/// Is the first of them.
pub(crate) fn run(mut args: impl Iterator<Item = String>) -> Result<()> {
    let mut next = |what: &'static str| args.next().context(what);
    let path = next("no file")?;
    let pages: usize = next("no pages")?.parse().context("the pages")?;
    let [first, second]: [Arrangement; 2] = serde_json::from_str(&next("no arrangements")?)?;
    let file = OpenOptions::new().read(true).write(true).open(&path);
    let file = file.with_context(|| format!("opening {path}"))?;
    let mapped = Mapped::whole(&file, first)?;
    let mut sharing = Sharing { pages: pages as u64, ..Sharing::default() };
    sharing.first = touched(&mapped, 0..pages)?;
    let (mut reader, mut writer) = std::io::pipe().context("opening a pipe")?;
    // SAFETY: the process has one thread, so the child may do anything; it leaves by `exit`.
    match unsafe { fork() }.context("forking")? {
        ForkResult::Child => {
            drop(mapped);
            let mapped = Mapped::whole(&file, second)?;
            sharing.second = touched(&mapped, 0..pages)?;
            mapped.protect(pages / 2)?;
            sharing.after_protect = touched(&mapped, 0..pages)?;
            drop(mapped);
            let mapped = Mapped::whole(&file, second)?;
            sharing.mapped_again = touched(&mapped, 0..pages)?;
            mapped.unmap(pages / 2)?;
            let others = (0..pages).filter(|&page| page != pages / 2);
            sharing.after_unmap = touched(&mapped, others)?;
            writer.write_all(&serde_json::to_vec(&sharing)?).context("writing to a pipe")?;
            std::process::exit(0);
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut text = Vec::new();
            reader.read_to_end(&mut text).context("reading from a pipe")?;
            match waitpid(child, None) {
                Ok(WaitStatus::Exited(_, 0)) => {}
                other => bail!("the second process ended so: {other:?}"),
            }
            sharing = serde_json::from_slice(&text).context("the second process")?;
            sharing.first_again = touched(&mapped, 0..pages)?;
        }
    }
    println!("{}", serde_json::to_string(&sharing)?);
    Ok(())
}

/// Reads a word of each page, and counts the faults.
fn touched(mapped: &Mapped, pages: impl Iterator<Item = usize>) -> Result<u64> {
    let before = faults()?;
    for page in pages {
        mapped.read(page, 0);
    }
    Ok(faults()? - before)
}
