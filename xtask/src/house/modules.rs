// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A crate's modules, and the files that the paths in them lead to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use syn::visit::{self, Visit};
use syn::{Attribute, Expr, Item, Lit, Meta, UseTree, Visibility};

/// The name of a module from the crate's root on.
type ModulePath = Vec<String>;

/// What [`Crate::resolve`] follows at most, so that names which lead to each other end.
const MOST_STEPS: u32 = 32;

/// One module, in a file of its own or not.
#[derive(Default)]
struct Module {
    file: PathBuf,
    /// Names that a `use` brings in, and the paths behind them.
    imports: BTreeMap<String, Vec<String>>,
    globs: Vec<Vec<String>>,
    /// Names of the items that are declared here.
    items: BTreeSet<String>,
    /// The paths of private imports, and those in code that begin at the crate, this module or the
    /// one above.
    paths: Vec<Vec<String>>,
    /// Paths of the types that have an `impl` here.
    implemented: Vec<Vec<String>>,
}

/// The modules of a crate, without those under `#[cfg(test)]`.
pub(super) struct Crate(BTreeMap<ModulePath, Module>);

impl Crate {
    /// Reads the crate with this root file, and the files of its modules.
    ///
    /// # Errors
    /// If one cannot be read or parsed.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let mut this = Self(BTreeMap::new());
        let folder = root.parent().context("a file is in a folder")?;
        this.read_file(root, folder, Vec::new())?;
        Ok(this)
    }

    fn read_file(&mut self, file: &Path, folder: &Path, name: ModulePath) -> Result<()> {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let parsed = syn::parse_file(&text).with_context(|| file.display().to_string())?;
        self.read_module(file, folder, name, parsed.items)
    }

    /// `folder` is where the files of child modules are.
    fn read_module(
        &mut self,
        file: &Path,
        folder: &Path,
        name: ModulePath,
        items: Vec<Item>,
    ) -> Result<()> {
        let mut module = Module { file: file.to_owned(), ..Module::default() };
        for item in items {
            if is_test(attributes(&item)) {
                continue;
            }
            if let Some(name) = declared(&item) {
                module.items.insert(name);
            }
            match item {
                Item::Mod(child) => {
                    let ident = child.ident.to_string();
                    let inside = folder.join(&ident);
                    let path = [&name[..], std::slice::from_ref(&ident)].concat();
                    match child.content {
                        Some((_, items)) => self.read_module(file, &inside, path, items)?,
                        None => match given_path(&child.attrs) {
                            Some(given) => {
                                let beside = file.parent().unwrap_or(folder);
                                self.read_file(&beside.join(given), &inside, path)?;
                            }
                            None => {
                                let flat = folder.join(format!("{ident}.rs"));
                                let nested = inside.join("mod.rs");
                                let child = if flat.is_file() { flat } else { nested };
                                self.read_file(&child, &inside, path)?;
                            }
                        },
                    }
                }
                Item::Use(item) => {
                    let private = matches!(item.vis, Visibility::Inherited);
                    module.import(&item.tree, &[], private);
                }
                item => module.visit_item(&item),
            }
        }
        self.0.insert(name, module);
        Ok(())
    }

    /// The pairs of files of which the first names something that the second declares. A file of a
    /// child module that has an `impl` for a type of its parent's file is a part of that type: it
    /// may name what is in that file.
    pub(super) fn edges(&self) -> BTreeSet<(PathBuf, PathBuf)> {
        let mut edges = BTreeSet::new();
        let mut parts = BTreeSet::new();
        for (name, module) in &self.0 {
            let resolved = |paths: &[Vec<String>]| -> Vec<(PathBuf, PathBuf)> {
                let ends = paths.iter().filter_map(|path| self.resolve(name, path, MOST_STEPS));
                let others = ends.filter(|end| **end != module.file);
                others.map(|end| (module.file.clone(), end.clone())).collect()
            };
            edges.extend(resolved(&module.paths));
            let above: BTreeSet<_> = (0..name.len())
                .filter_map(|len| self.0.get(&name[..len]))
                .map(|m| &m.file)
                .collect();
            parts.extend(
                resolved(&module.implemented).into_iter().filter(|(_, to)| above.contains(to)),
            );
        }
        &edges - &parts
    }

    /// The file with the item or module that `path` names in the module `at`; none if that is not
    /// in this crate.
    fn resolve(&self, at: &[String], path: &[String], steps: u32) -> Option<&PathBuf> {
        let steps = steps.checked_sub(1)?;
        let mut here = at.to_vec();
        for (nr, name) in path.iter().enumerate() {
            match name.as_str() {
                "crate" => here.clear(),
                "self" => {}
                "super" => {
                    here.pop()?;
                }
                _ => {
                    let child = [&here[..], std::slice::from_ref(name)].concat();
                    let module = self.0.get(&here)?;
                    if self.0.contains_key(&child) {
                        here = child;
                    } else if let Some(import) = module.imports.get(name) {
                        return self.resolve(&here, &[import, &path[nr + 1..]].concat(), steps);
                    } else if module.items.contains(name) {
                        return Some(&module.file);
                    } else {
                        let behind = |glob: &Vec<String>| {
                            self.resolve(&here, &[glob, &path[nr..]].concat(), steps)
                        };
                        return module.globs.iter().find_map(behind);
                    }
                }
            }
        }
        self.0.get(&here).map(|module| &module.file)
    }
}

impl Module {
    fn import(&mut self, tree: &UseTree, prefix: &[String], private: bool) {
        let join = |name: String| [prefix, &[name]].concat();
        let (name, path) = match tree {
            UseTree::Path(path) => {
                return self.import(&path.tree, &join(path.ident.to_string()), private);
            }
            UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.import(tree, prefix, private));
            }
            UseTree::Glob(_) => return self.globs.push(prefix.to_vec()),
            UseTree::Name(name) if name.ident == "self" => {
                (prefix.last().cloned().unwrap_or_default(), prefix.to_vec())
            }
            UseTree::Name(name) => (name.ident.to_string(), join(name.ident.to_string())),
            UseTree::Rename(name) if name.ident == "self" => {
                (name.rename.to_string(), prefix.to_vec())
            }
            UseTree::Rename(name) => (name.rename.to_string(), join(name.ident.to_string())),
        };
        if private {
            self.paths.push(path.clone());
        }
        // A name of itself, as `use log;` is, leads to no other place.
        if path != [name.clone()] {
            self.imports.insert(name, path);
        }
    }
}

impl<'ast> Visit<'ast> for Module {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.paths.extend(Some(names(path)).filter(|path| is_long(path)));
        visit::visit_path(self, path);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if let syn::Type::Path(of) = &*item.self_ty {
            self.implemented.push(names(&of.path));
        }
        visit::visit_item_impl(self, item);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.import(&item.tree, &[], true);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        let text = item.tokens.to_string().replace(" :: ", "::");
        let words = text.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
        let paths = words.map(|word| word.split("::").map(str::to_owned).collect::<Vec<_>>());
        self.paths.extend(paths.filter(|path| is_long(path)));
        visit::visit_macro(self, item);
    }
}

/// Whether a path in code leads out of its module by itself, and not by an import.
fn is_long(path: &[String]) -> bool {
    path.len() > 1 && matches!(&*path[0], "crate" | "super" | "self")
}

fn names(path: &syn::Path) -> Vec<String> {
    path.segments.iter().map(|segment| segment.ident.to_string()).collect()
}

fn declared(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        _ => return None,
    };
    Some(ident.to_string())
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        _ => false,
    })
}

fn given_path(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| match &attribute.meta {
        Meta::NameValue(meta) if meta.path.is_ident("path") => match &meta.value {
            Expr::Lit(value) => match &value.lit {
                Lit::Str(text) => Some(text.value()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    })
}
