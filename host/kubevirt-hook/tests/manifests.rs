// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The manifests of `packaging/kubernetes`: what they say to hook and hostd, and their form by published schemas.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use balloon_kubevirt_hook::options::{Options, PREFIX};
use balloon_policy::Rules;
use serde_json::{Value, json};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Of Kubernetes, and with what they come: the newest that the package has is its default.
const KUBERNETES: &str = "1.37.0";
const KUBERNETES_SCHEMAS: &str = "kubernetes-validate==1.37.0";
/// Of KubeVirt 1.7, as types.
const KUBEVIRT_SCHEMAS: &str = "@kubevirt-ui-ext/kubevirt-api@1.7.0";
const COMPILER: &str = "typescript@5.9.3";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/kubernetes")
}

fn read(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap()
}

fn done(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let said = [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(status.success(), "{command:?}: {status}\n{said}");
    said
}

/// `NAME: VALUE` of the example's annotations that are for the hook.
fn annotations(vm: &str) -> serde_json::Map<String, Value> {
    let lines = vm.lines().filter_map(|line| line.trim().strip_prefix(PREFIX));
    let pair = |line: &str| {
        let (name, value) = line.split_once(": ").unwrap();
        (format!("{PREFIX}{name}"), value.trim_matches('"').into())
    };
    lines.map(pair).collect()
}

#[test]
fn example_is_understood_by_the_hook() {
    let vm = read("example/virtual-machine.yaml");
    let annotations = annotations(&vm);
    assert!(!annotations.is_empty());
    let vmi = json!({ "metadata": { "annotations": annotations } }).to_string();
    assert!(Options::read(vmi.as_bytes()).unwrap().enabled);
    let mut lines =
        vm.lines().skip_while(|line| !line.contains("hooks.kubevirt.io/hookSidecars: |"));
    let list: Value = serde_json::from_str(lines.nth(1).unwrap().trim()).unwrap();
    let image = list[0]["image"].as_str().unwrap();
    assert_eq!(image.split_once("balloon-kubevirt-hook:").unwrap().1, VERSION);
}

#[test]
fn versions_and_policy_of_the_manifests_are_ours() {
    assert!(read("kustomization.yaml").contains(&format!("newTag: {VERSION}\n")));
    for line in read("Containerfile").lines().filter(|line| line.contains("--tag")) {
        assert!(line.contains(&format!(":{VERSION}")), "{line}");
    }
    let rules = Rules::from_toml(&read("policy.toml")).unwrap();
    assert!(rules.host.dry_run, "a policy that acts is the operator's decision");
}

#[test]
#[ignore = "needs npm and pip and a full run: cargo xtask test --full"]
fn manifests_have_the_form_of_published_schemas() {
    let dir = tempfile::tempdir().unwrap();
    let [tools, wrong] = ["tools", "wrong.yaml"].map(|name| dir.path().join(name));
    done(Command::new("python3").args(["-m", "venv"]).arg(&tools));
    let tool = |name: &str| Command::new(tools.join("bin").join(name));
    done(tool("pip").args(["install", "--quiet", KUBERNETES_SCHEMAS]));
    let validate = |files: &[PathBuf]| {
        tool("kubernetes-validate")
            .args(["--strict", "-k", KUBERNETES])
            .args(files)
            .output()
            .unwrap()
    };
    let manifests = ["namespace.yaml", "hostd.yaml"].map(|name| folder().join(name));
    let valid = validate(&manifests);
    assert!(valid.status.success(), "{valid:?}");
    fs::write(
        &wrong,
        read("hostd.yaml").replace("readOnlyRootFilesystem", "readOnlyRootFileSystem"),
    )
    .unwrap();
    assert!(!validate(std::slice::from_ref(&wrong)).status.success(), "a wrong name passes");

    // KubeVirt's own are packaged as types: an object of them has no name that they do not have.
    fs::write(dir.path().join("package.json"), "{}").unwrap();
    let npm = ["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"];
    done(Command::new("npm").args(npm).args([COMPILER, KUBEVIRT_SCHEMAS]).current_dir(dir.path()));
    let to_json = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    let vm = folder().join("example/virtual-machine.yaml");
    let vm = done(tool("python").args(["-c", to_json]).arg(vm));
    let compile = |vm: &str| {
        let text = format!(
            "import type {{ V1VirtualMachine }} from '@kubevirt-ui-ext/kubevirt-api/kubevirt';\n\
             export const vm: V1VirtualMachine = {vm};\n"
        );
        fs::write(dir.path().join("vm.ts"), text).unwrap();
        let mut compiler = Command::new(dir.path().join("node_modules/.bin/tsc"));
        compiler.args(["--noEmit", "--strict", "--skipLibCheck", "--module", "esnext"]);
        compiler.args(["--moduleResolution", "bundler", "vm.ts"]).current_dir(dir.path());
        compiler.output().unwrap()
    };
    let valid = compile(&vm);
    assert!(valid.status.success(), "{valid:?}");
    let wrong = compile(&vm.replace("evictionStrategy", "evictionPolicy"));
    assert!(String::from_utf8_lossy(&wrong.stdout).contains("evictionPolicy"), "{wrong:?}");
}
