// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a program is made of, for programs: a bill of materials in CycloneDX 1.5.
//!
//! It has neither a date nor a number of its own, so that the same sources make the same file.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::{Value, json};

use super::about::{Part, VERSION};
use super::linked::{Id, Linked, Program};
use super::linking::{Linking, Toolchain};
use super::sums;

/// Its name, beside packages and in them.
pub(super) fn file(part: Part) -> String {
    format!("{}.cdx.json", part.name())
}

/// Writes it for a program.
///
/// # Errors
/// If cargo or rustc do not say what they link.
pub(super) fn of(part: Part, bytes: &[u8], linking: Linking) -> Result<String> {
    let program = Program::read(part)?;
    let toolchain = Toolchain::read()?;
    let own = url(&Id { name: part.name().to_owned(), version: VERSION.to_owned() });
    let system = system(&toolchain, linking)?;
    let mut components: Vec<Value> = program.packages.iter().map(component).collect();
    let mut dependencies = vec![depends(&own, &program.uses, &references(&system))];
    dependencies.extend(
        program.packages.iter().map(|package| depends(&url(&package.id), &package.uses, &[])),
    );
    dependencies.extend(references(&system).iter().map(|to| json!({ "ref": to })));
    components.extend(system);
    let bill = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "lifecycles": [{ "phase": "build" }],
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": part.name(),
                "version": VERSION,
                "description": part.summary(),
                "licenses": [{ "expression": env!("CARGO_PKG_LICENSE") }],
                "purl": own,
                "hashes": [{ "alg": "SHA-256", "content": sums::sha256(bytes)? }],
            },
            "properties": [
                { "name": "cargo:target", "value": linking.target()? },
                { "name": "rustc:version", "value": toolchain.named },
            ],
        },
        "components": components,
        "dependencies": dependencies,
    });
    Ok(serde_json::to_string_pretty(&bill)? + "\n")
}

fn component(package: &Linked) -> Value {
    let Linked { id, license, description, repository, checksum, .. } = package;
    let mut component = json!({
        "type": "library",
        "bom-ref": url(id),
        "name": id.name,
        "version": id.version,
        "scope": "required",
        "hashes": [{ "alg": "SHA-256", "content": checksum }],
        // Older packages separate alternatives by a slash.
        "licenses": [{ "expression": license.replace(" / ", " OR ").replace('/', " OR ") }],
        "purl": url(id),
    });
    if let Some(text) = description {
        component["description"] = json!(text.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    if let Some(address) = repository {
        component["externalReferences"] = json!([{ "type": "vcs", "url": address }]);
    }
    component
}

/// What is linked besides packages: the standard library, which comes compiled, and a static C library.
fn system(toolchain: &Toolchain, linking: Linking) -> Result<Vec<Value>> {
    let version = &toolchain.version;
    let library = format!("pkg:generic/rust-std@{version}");
    let mut system = vec![json!({
        "type": "library",
        "bom-ref": library,
        "name": "rust-std",
        "version": version,
        "scope": "required",
        "licenses": [{ "expression": "MIT OR Apache-2.0" }],
        "cpe": format!("cpe:2.3:a:rust-lang:rust:{version}:*:*:*:*:*:*:*"),
        "purl": library,
    })];
    if let Some((name, version, license)) = linking.c_library()? {
        let url = version.as_ref().map(|version| format!("pkg:generic/{name}@{version}"));
        let url = url.unwrap_or_else(|| format!("pkg:generic/{name}"));
        let mut library = json!({
            "type": "library",
            "bom-ref": url,
            "name": name,
            "scope": "required",
            "licenses": [{ "expression": license }],
            "purl": url,
        });
        if let Some(version) = version {
            library["version"] = json!(version);
        }
        system.push(library);
    }
    Ok(system)
}

fn references(components: &[Value]) -> Vec<String> {
    let names = components.iter().filter_map(|component| component["bom-ref"].as_str());
    names.map(str::to_owned).collect()
}

fn depends(on: &str, uses: &BTreeSet<Id>, others: &[String]) -> Value {
    let uses: Vec<String> = uses.iter().map(url).chain(others.iter().cloned()).collect();
    json!({ "ref": on, "dependsOn": uses })
}

/// The package URL, by which other programs know a package.
fn url(Id { name, version }: &Id) -> String {
    format!("pkg:cargo/{name}@{}", version.replace('+', "%2B"))
}

/// Compares a bill with what cargo says it has compiled for the program.
///
/// # Errors
/// If a package is missing or too many, or CycloneDX does not allow what the bill says.
#[cfg(feature = "packages")]
pub(super) fn check(bill: &str, compiled: &BTreeSet<Id>) -> Result<()> {
    use anyhow::{Context as _, ensure};
    use cyclonedx_bom::models::bom::Bom;
    use cyclonedx_bom::prelude::Validate as _;

    let parsed = Bom::parse_from_json(bill.as_bytes()).context("no CycloneDX")?;
    let valid = parsed.validate();
    ensure!(valid.passed(), "invalid CycloneDX: {valid:?}");
    let components = parsed.components.context("no components")?.0;
    let named: BTreeSet<Id> = components
        .iter()
        .filter(|component| {
            let url = component.purl.as_ref().map(ToString::to_string).unwrap_or_default();
            url.starts_with("pkg:cargo/")
        })
        .filter_map(|component| {
            let version = component.version.as_ref()?.to_string();
            Some(Id { name: component.name.to_string(), version })
        })
        .collect();
    let missing: Vec<_> = compiled.difference(&named).collect();
    let others: Vec<_> = named.difference(compiled).collect();
    ensure!(
        missing.is_empty() && others.is_empty(),
        "the bill of materials lacks {missing:?}, and has {others:?}, which are not compiled"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bill() -> Value {
        serde_json::from_str(&of(Part::Daemon, b"a daemon", Linking::Dynamic).unwrap()).unwrap()
    }

    #[test]
    fn bill_names_what_is_linked_and_no_more() {
        let bill = bill();
        let named: Vec<&str> = bill["components"]
            .as_array()
            .unwrap()
            .iter()
            .map(|component| component["name"].as_str().unwrap())
            .collect();
        for name in ["vhost-user-backend", "libc", "serde", "rust-std"] {
            assert!(named.contains(&name), "{name}: {named:?}");
        }
        // A macro, what tests and builds, and what more features would need.
        for other in ["serde_derive", "proptest", "xtask", "guest-driver", "regex", "glibc"] {
            assert!(!named.contains(&other), "{other}: {named:?}");
        }
        // sha256sum of the text.
        let sum = "27a38b4c6a6d1ef77d4894e10bd391d1f6719d7abed1f02797e650b82fd0e689";
        assert_eq!(bill["metadata"]["component"]["hashes"][0]["content"], sum);
    }

    #[test]
    fn bill_refers_only_to_what_it_names() {
        let bill = bill();
        let list = |name: &str| bill[name].as_array().unwrap().clone();
        let mut named: BTreeSet<String> = references(&list("components")).into_iter().collect();
        let own = bill["metadata"]["component"]["bom-ref"].as_str().unwrap();
        named.insert(own.to_owned());
        let mut used = BTreeSet::from([own.to_owned()]);
        for edge in list("dependencies") {
            assert!(named.contains(edge["ref"].as_str().unwrap()), "{edge}");
            for to in edge["dependsOn"].as_array().into_iter().flatten() {
                used.insert(to.as_str().unwrap().to_owned());
            }
        }
        assert_eq!(used, named);
    }

    #[cfg(feature = "packages")]
    #[test]
    fn bill_that_is_not_as_compiled_is_refused() {
        let text = of(Part::Daemon, b"a daemon", Linking::Dynamic).unwrap();
        let packages = Program::read(Part::Daemon).unwrap().packages;
        let compiled: BTreeSet<Id> = packages.into_iter().map(|package| package.id).collect();
        check(&text, &compiled).unwrap();
        let mut more = compiled.clone();
        more.insert(Id { name: "left-out".to_owned(), version: "1.0.0".to_owned() });
        let error = check(&text, &more).unwrap_err().to_string();
        assert!(error.contains("left-out"), "{error}");
        let mut fewer = compiled.clone();
        fewer.pop_first();
        check(&text, &fewer).unwrap_err();
        check(&text.replace("Apache-2.0 OR", "Apache-2.0 or else"), &compiled).unwrap_err();
    }

    #[test]
    fn bill_of_the_host_names_no_package_of_ours() {
        let text = of(Part::Host, b"a program", Linking::Dynamic).unwrap();
        for named in ["pkg:cargo/tokio@", "pkg:cargo/hyper@", "pkg:cargo/vhost@"] {
            assert!(text.contains(named), "{named}");
        }
        // Packages of this repository are no components.
        assert!(!text.contains("balloon-policy"), "{text}");
        assert_eq!(text.matches("pkg:cargo/vhost-device-balloon@").count(), 0);
    }

    #[test]
    fn bill_has_no_date_and_no_path() {
        let (once, again) = (
            of(Part::Daemon, b"a daemon", Linking::Dynamic).unwrap(),
            of(Part::Daemon, b"a daemon", Linking::Dynamic).unwrap(),
        );
        assert_eq!(once, again);
        for own in ["timestamp", "serialNumber", "file://", env!("CARGO_MANIFEST_DIR")] {
            assert!(!once.contains(own), "{own}");
        }
    }
}
