//! Circles of files inside a crate: who imports whom, read from the sources.
//!
//! An import is a path that begins with `crate`, `super`, `self` or the name of a module below, in a `use` or anywhere else; it leads to the
//! file that defines the name, through the re-exports of `lib.rs` and of `mod.rs` files. Modules for tests are not looked at. A `pub use` of
//! a `mod.rs` is a signpost and no import, and `lib.rs` is nothing but signposts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

/// The name of a module inside a crate; the crate's root is empty.
type Module = Vec<String>;

struct Source {
    /// Paths that this file imports.
    imports: Vec<Vec<String>>,
    /// What a name of this file's namespace stands for, where a `use` brought it in.
    names: BTreeMap<String, Vec<String>>,
}

/// The files of one crate.
pub(crate) struct Files(BTreeMap<Module, Source>);

impl Files {
    pub(crate) fn read(folder: &Path) -> Self {
        let mut paths = Vec::new();
        crate::house::files(folder, "rs", &mut paths);
        let source = |path: std::path::PathBuf| {
            let below = path.strip_prefix(folder).unwrap().with_extension("");
            let mut module: Module = below.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
            if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
                module.pop();
            }
            (module, parse(&fs_err::read_to_string(&path).unwrap()))
        };
        Self(paths.into_iter().map(source).collect())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Which files each file imports; the crate's root is left out.
    pub(crate) fn imports(&self) -> BTreeMap<&Module, BTreeSet<&Module>> {
        let of = |(module, source): (&Module, &Source)| {
            let found = source.imports.iter().filter_map(|path| self.resolve(module, path, 0));
            found.filter(|to| !to.is_empty() && *to != module).map(|to| self.0.get_key_value(to).unwrap().0).collect()
        };
        let below = self.0.iter().filter(|(module, _)| !module.is_empty());
        below.map(|(module, source)| (module, of((module, source)))).collect()
    }

    /// The file that defines what a path in `from` leads to; none if that is another crate's.
    fn resolve<'a>(&'a self, from: &'a Module, path: &[String], hops: usize) -> Option<&'a Module> {
        let (mut at, mut rest) = (from.clone(), path);
        match rest.first()?.as_str() {
            "crate" => (at, rest) = (vec![], &rest[1..]),
            "self" => rest = &rest[1..],
            "super" => {
                while rest.first().is_some_and(|word| word == "super") {
                    at.pop();
                    rest = &rest[1..];
                }
            }
            name => {
                let below = [from.as_slice(), &[name.to_owned()]].concat();
                if !self.0.contains_key(&below) {
                    return None;
                }
            }
        }
        while let Some(name) = rest.first() {
            let below = [at.as_slice(), std::slice::from_ref(name)].concat();
            if self.0.contains_key(&below) {
                (at, rest) = (below, &rest[1..]);
                continue;
            }
            let (module, source) = self.0.get_key_value(&at)?;
            let elsewhere = source.names.get(name).filter(|_| hops < 8);
            return elsewhere.and_then(|path| self.resolve(module, path, hops + 1)).or(Some(module));
        }
        self.0.get_key_value(&at).map(|(module, _)| module)
    }

    /// The shortest circle through each file that is in one, each circle once: `a -> b -> a`.
    pub(crate) fn circles(&self) -> Vec<String> {
        let imports = self.imports();
        let mut found = BTreeMap::new();
        for start in imports.keys().copied() {
            let mut before: BTreeMap<&Module, &Module> = BTreeMap::new();
            let mut next = VecDeque::from([start]);
            while let Some(at) = next.pop_front() {
                for to in imports[at].iter().copied() {
                    if !before.contains_key(to) {
                        before.insert(to, at);
                        next.push_back(to);
                    }
                }
            }
            let Some(mut at) = before.get(start).copied() else { continue };
            let mut circle = vec![start];
            while at != start {
                circle.push(at);
                at = before[at];
            }
            circle.push(start);
            circle.reverse();
            let text: Vec<String> = circle.iter().map(|module| module.join("/")).collect();
            let members: BTreeSet<&Module> = circle.into_iter().collect();
            found.entry(members).or_insert_with(|| text.join(" -> "));
        }
        found.into_values().collect()
    }
}

/// A source's words and marks, without comments, literals and what is compiled for tests alone.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let mut out: Vec<String> = Vec::new();
    let mut i = 0;
    let starts = |i: usize, what: &str| what.chars().enumerate().all(|(k, c)| chars.get(i + k) == Some(&c));
    while i < chars.len() {
        let c = chars[i];
        if starts(i, "//") {
            while i < chars.len() && chars[i] != '\n' {
                i += 1;
            }
        } else if starts(i, "/*") {
            while i < chars.len() && !starts(i, "*/") {
                i += 1;
            }
            i += 2;
        } else if c == '"' {
            let raw = out.last().is_some_and(|word| ["r", "br"].contains(&word.as_str()));
            i += 1;
            while i < chars.len() && chars[i] != '"' {
                i += if chars[i] == '\\' && !raw { 2 } else { 1 };
            }
            i += 1;
        } else if starts(i, "r#\"") {
            while i < chars.len() && !(i > 2 && starts(i, "\"#")) {
                i += 1;
            }
            i += 2;
        } else if c == '\'' && (chars.get(i + 1) == Some(&'\\') || chars.get(i + 2) == Some(&'\'')) {
            i += if chars[i + 1] == '\\' { 3 } else { 2 };
            while i < chars.len() && chars[i] != '\'' {
                i += 1;
            }
            i += 1;
        } else if c.is_alphanumeric() || c == '_' {
            let from = i;
            while i < chars.len() && (chars[i].is_alphanumeric() || chars[i] == '_') {
                i += 1;
            }
            out.push(chars[from..i].iter().collect());
        } else if starts(i, "::") {
            out.push("::".into());
            i += 2;
        } else {
            if !c.is_whitespace() {
                out.push(c.to_string());
            }
            i += 1;
        }
    }
    without_tests(&out)
}

/// Leaves out every item behind an attribute `#[cfg(test)]` or `#[cfg(all(test, ...))]`.
fn without_tests(tokens: &[String]) -> Vec<String> {
    let mut out = Vec::new();
    let mut i = 0;
    let word = |i: usize| tokens.get(i).map_or("", String::as_str);
    while i < tokens.len() {
        let of_tests = (word(i), word(i + 1), word(i + 2)) == ("#", "[", "cfg")
            && (word(i + 4) == "test" || (word(i + 4), word(i + 6)) == ("all", "test"));
        if !of_tests {
            out.push(tokens[i].clone());
            i += 1;
            continue;
        }
        while word(i) != "]" {
            i += 1;
        }
        i += 1;
        let mut depth = 0;
        while i < tokens.len() {
            depth += i32::from(word(i) == "{") - i32::from(word(i) == "}");
            i += 1;
            if depth == 0 && [";", "}"].contains(&word(i - 1)) {
                break;
            }
        }
    }
    out
}

fn parse(text: &str) -> Source {
    let tokens = tokens(text);
    let mut source = Source { imports: vec![], names: BTreeMap::new() };
    let mut i = 0;
    while i < tokens.len() {
        if tokens[i] == "use" {
            // `pub use` and `pub(crate) use` are signposts.
            let signpost = i > 0 && (tokens[i - 1] == "pub" || tokens[i - 1] == ")");
            let end = i + tokens[i..].iter().position(|t| t == ";").unwrap();
            let mut paths = Vec::new();
            tree(&tokens[i + 1..end], &[], &mut paths);
            for (path, name) in paths {
                if !signpost {
                    source.imports.push(path.clone());
                }
                source.names.insert(name, path);
            }
            i = end;
        } else if tokens.get(i + 1).is_some_and(|t| t == "::") && is_word(&tokens[i]) {
            let mut path = vec![tokens[i].clone()];
            while tokens.get(i + 1).is_some_and(|t| t == "::") && tokens.get(i + 2).is_some_and(|t| is_word(t)) {
                path.push(tokens[i + 2].clone());
                i += 2;
            }
            if path.len() > 1 {
                source.imports.push(path);
            }
        }
        i += 1;
    }
    source
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The paths of a `use` tree, each with the name that it gets.
fn tree(tokens: &[String], before: &[String], out: &mut Vec<(Vec<String>, String)>) {
    let (mut depth, mut from) = (0, 0);
    for i in 0..=tokens.len() {
        let token = tokens.get(i).map_or(",", String::as_str);
        depth += i32::from(token == "{") - i32::from(token == "}");
        if depth > 0 || token != "," {
            continue;
        }
        let part = &tokens[from..i];
        from = i + 1;
        if let Some(open) = part.iter().position(|t| t == "{") {
            let words = part[..open].iter().filter(|t| is_word(t)).cloned();
            let inner: Vec<String> = before.iter().cloned().chain(words).collect();
            tree(&part[open + 1..part.len() - 1], &inner, out);
            continue;
        }
        let alias = part.iter().position(|t| t == "as").map(|at| part[at + 1].clone());
        let words = part.iter().take_while(|t| *t != "as").filter(|t| is_word(t)).cloned();
        let mut path: Vec<String> = before.iter().cloned().chain(words).collect();
        if path.len() > 1 && path.last().is_some_and(|word| word == "self") {
            path.pop();
        }
        if let Some(name) = alias.or_else(|| path.last().cloned()) {
            out.push((path, name));
        }
    }
}

#[test]
fn a_circle_is_found_through_re_exports_and_inline_paths_and_no_circle_where_tests_import() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, text).unwrap();
    };
    write("lib.rs", "mod a; mod b; mod c;\npub use b::B;\npub use c::{C, own::D as Renamed};");
    write(
        "a.rs",
        "use crate::B; // and not crate::Renamed\n#[cfg(test)]\nmod tests { use crate::C; fn f() { super::super::c::x() } }",
    );
    write("b.rs", "fn f() { let brace = '{'; crate::c::x(r\"crate::a::A\", \"\\\"crate::a::A\") }");
    write("c/mod.rs", "mod own;\npub use own::D;\npub struct C;\npub fn x() {}");
    write("c/own.rs", "pub struct D;");
    assert_eq!(Files::read(folder.path()).circles(), Vec::<String>::new());
    // Through the alias in lib.rs and the signpost in mod.rs to the file that defines it.
    write("c/own.rs", "use std::fmt;\npub struct D(Box<crate::a::A>);");
    write("b.rs", "use {crate::{Renamed as E}, std::fmt::{self, Debug}};");
    assert_eq!(Files::read(folder.path()).circles(), ["a -> b -> c/own -> a"]);
    // What a folder's own file uses of its parts, and they of it.
    write("b.rs", "");
    write("c/mod.rs", "mod own;\npub struct C;\npub fn x() { own::y() }");
    write("c/own.rs", "use super::C;");
    assert_eq!(Files::read(folder.path()).circles(), ["c -> c/own -> c"]);
}
