//! Tokens that a model folder adds to its `tokenizer.json`: those of `tokenizer_config.json`, and of the older `added_tokens.json`.

use std::path::Path;

use problem::{Result, invalid};
use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer};

/// The names under which a folder lists its special tokens.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Further special tokens, as lists or by names of their own: under the names of transformers 5 and of transformers 4.
const LISTED: [&str; 3] = ["extra_special_tokens", "model_specific_special_tokens", "additional_special_tokens"];

/// Adds to `tokenizer` what transformers adds when it loads the folder, in its order: `added_tokens_decoder` of
/// `tokenizer_config.json` by id, `added_tokens.json` by id, then the named special tokens that the vocabulary lacks. `older` are `added_tokens.json`
/// and `special_tokens_map.json`, of which the second counts where the config lists no added tokens.
///
/// # Errors
/// A token that is no token, or one whose id in the file is not the id that the tokenizer gives it.
pub(crate) fn add_tokens(tokenizer: &mut Tokenizer, folder: &Path, config: &Value, older: [&Value; 2]) -> Result<()> {
    let [older, map] = older;
    let place = |file: &str, key: &str| format!("{}, `{key}`", folder.join(file).display());
    let hint = "download the tokenizer's files again, all of one version";
    let mut with_ids = Vec::new();
    for (id, value) in config["added_tokens_decoder"].as_object().into_iter().flatten() {
        let at = || place("tokenizer_config.json", "added_tokens_decoder");
        let wrong = || invalid(at(), "ids with tokens", format!("`{id}`: {value}"), hint);
        with_ids.push((id.parse::<u32>().map_err(|_| wrong())?, token(value, false).ok_or_else(wrong)?, at()));
    }
    for (content, id) in older.as_object().into_iter().flatten() {
        let at = || place("added_tokens.json", content);
        let wrong = || invalid(at(), "the id of a token", id.to_string(), hint);
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong)?;
        if !with_ids.iter().any(|(_, token, _)| token.content == *content) {
            with_ids.push((id, AddedToken::from(content.clone(), false), at()));
        }
    }
    with_ids.sort_by_key(|(id, ..)| *id);
    let known = tokenizer.get_added_tokens_decoder();
    let is_new = |id: u32, token: &AddedToken| known.get(&id).is_none_or(|k| !same(k, token));
    let new: Vec<AddedToken> =
        with_ids.iter().filter(|(id, token, _)| is_new(*id, token)).map(|(_, token, _)| token.clone()).collect();
    tokenizer.add_tokens(&new);
    for (id, token, at) in &with_ids {
        let found = tokenizer.token_to_id(&token.content);
        if found != Some(*id) {
            let found = found.map_or_else(|| "none".to_owned(), |found| found.to_string());
            return Err(invalid(at, format!("id {id} for the token `{}`", token.content), found, hint));
        }
    }
    let added: Vec<String> = tokenizer.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
    let of_map = config["added_tokens_decoder"].is_null();
    let value = |name: &&str| {
        let own = &config[*name];
        if own.is_null() && of_map { &map[*name] } else { own }
    };
    let several = |value: &Value| -> Vec<Value> {
        let named = value.as_object().into_iter().flat_map(|m| m.values().cloned());
        value.as_array().cloned().unwrap_or_default().into_iter().chain(named).collect()
    };
    let named = NAMED.iter().filter_map(|name| token(value(name), true));
    let listed = LISTED.iter().flat_map(|name| several(value(name)));
    for mut token in named.chain(listed.filter_map(|v| token(&v, true))).filter(|token| !added.contains(&token.content))
    {
        token.special = true;
        tokenizer.add_tokens(&[token]);
    }
    Ok(())
}

/// A token as a text, or as an object with `content` and how it is found in texts.
fn token(value: &Value, special: bool) -> Option<AddedToken> {
    if let Some(content) = value.as_str() {
        return (!content.is_empty()).then(|| AddedToken::from(content.to_owned(), special));
    }
    let content = value.get("content")?.as_str().filter(|c| !c.is_empty())?;
    let flag = |name: &str, default: bool| value[name].as_bool().unwrap_or(default);
    let special = flag("special", special);
    Some(AddedToken {
        content: content.to_owned(),
        single_word: flag("single_word", false),
        lstrip: flag("lstrip", false),
        rstrip: flag("rstrip", false),
        normalized: flag("normalized", !special),
        special,
    })
}

/// The comparison of [`AddedToken`] itself looks at the content alone.
fn same(a: &AddedToken, b: &AddedToken) -> bool {
    let flags = |t: &AddedToken| (t.single_word, t.lstrip, t.rstrip, t.normalized, t.special);
    a.content == b.content && flags(a) == flags(b)
}
