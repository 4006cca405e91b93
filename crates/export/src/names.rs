//! Folder names from user ids: safe on every file system, different for different users, also where case is ignored.

/// Longest part of an id that is kept readable.
const READABLE: usize = 40;

/// The folder of a user. An id of lower-case letters, digits, `_` and inner `-` is its own name; any other gets its safe
/// characters and twelve digits of its SHA-256. An id that looks like such a name gets digits of its own, so that no id
/// can take another's folder.
pub fn folder_name(user_id: &str) -> String {
    let safe = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    let plain = !user_id.is_empty() && user_id.len() <= READABLE && user_id.chars().all(safe);
    if plain && !user_id.starts_with('-') && !ends_like_a_hash(user_id) && !reserved(user_id) {
        return user_id.to_owned();
    }
    let kept: String = user_id.to_lowercase().chars().map(|c| if safe(c) { c } else { '-' }).take(READABLE).collect();
    let kept = kept.trim_matches('-');
    let digits = &run::hash_bytes(user_id.as_bytes())[..12];
    format!("{}-{digits}", if kept.is_empty() { "user" } else { kept })
}

fn ends_like_a_hash(name: &str) -> bool {
    name.rsplit_once('-').is_some_and(|(_, tail)| tail.len() == 12 && tail.chars().all(|c| c.is_ascii_hexdigit()))
}

/// Names that Windows keeps for devices.
fn reserved(name: &str) -> bool {
    let numbered = |stem: &str| name.strip_prefix(stem).is_some_and(|n| n.len() == 1 && n != "0");
    ["con", "prn", "aux", "nul"].contains(&name) || numbered("com") || numbered("lpt")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_and_never_shared() {
        let long = "x".repeat(300);
        let hash_like = folder_name("Ann"); // an id that copies another's folder name
        let ids = [
            "ann",
            "Ann",
            "ANN",
            "ann ",
            "ann.",
            "../../x",
            "/etc/passwd",
            "..",
            ".",
            "",
            "nul",
            "com1",
            "a/b",
            "a\\b",
            "a-b",
            "a:b",
            "🙂",
            "😀",
            "a\0b",
            "-rf",
            &long,
            &long[1..],
            &hash_like,
            "ünï",
        ];
        let names: Vec<String> = ids.iter().map(|id| folder_name(id)).collect();
        for (id, name) in ids.iter().zip(&names) {
            assert!(name.len() <= 60, "{id:?} {name}");
            assert!(!name.is_empty(), "{id:?} {name}");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c)), "{name}");
            assert!(!name.starts_with('-'));
            assert!(!reserved(name));
        }
        let distinct: std::collections::HashSet<&String> = names.iter().collect();
        assert_eq!(distinct.len(), ids.len(), "{names:?}");
        assert_eq!(names[0], "ann");
    }
}
