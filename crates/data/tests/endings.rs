//! Whether a response ended by itself travels from the source to the token rows: only one that ended has the token that ends a turn.

use data::{Card, Column, TokenCache, Vote};
use text::{Ending, KnownRows};

use crate::common::{all, by_prompt, ingest};
use crate::tables::{TEMPLATE, tokenizer};

const LAYOUT: &str = "kind = 'votes'\nuser_id = 'rater'\nprompt = 'q'\nresponse_a = 'one'\nresponse_b = 'two'\nlabel = 'pick'\n\
                      label_a = '1'\nlabel_b = '2'\nlabel_tie = '='";

fn card(layout: &str, finished: &str) -> problem::Result<Card> {
    Card::parse(&format!("name = 'x'\nsource = 'y'\nlicence = 'z'\n[layout]\n{layout}\n[columns]\n{finished}"), &"card")
}

fn text(values: &[&str]) -> Column {
    Column::Text(values.iter().map(|v| (*v).to_owned()).collect())
}

fn told(votes: &[Vote]) -> Vec<(&str, Option<bool>, Option<bool>)> {
    votes.iter().map(|v| (v.chosen.as_str(), v.chosen_finished, v.rejected_finished)).collect()
}

#[test]
fn a_response_that_was_cut_is_not_taught_as_ended() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("v.parquet");
    let columns = [
        ("rater", text(&["u", "u", "u"])),
        ("q", text(&["one", "two", "three"])),
        ("one", text(&["two", "one", "four"])),
        ("two", text(&["three", "three", "one"])),
        ("pick", text(&["1", "2", "="])),
        ("one_done", Column::Boolean(vec![false, true, false])),
        ("two_done", Column::Boolean(vec![true, false, true])),
    ];
    data::write_table(&source, &columns).unwrap();
    let card = card(LAYOUT, "finished = ['one_done', 'two_done']").unwrap();
    let (votes, _) = ingest(&card, &source, &all()).unwrap();
    let expected =
        [("two", Some(false), Some(true)), ("three", Some(false), Some(true)), ("four", Some(false), Some(true))];
    assert_eq!(told(&votes), expected);

    // From the table again, whose first response is the chosen one or not; and from one of an earlier version, which has no such columns.
    let table = dir.path().join("table.parquet");
    data::write_votes(&table, &votes).unwrap();
    let canonical = self::card("kind = 'canonical'", "split = 'split'").unwrap();
    let (again, _) = ingest(&canonical, &table, &all()).unwrap();
    assert_eq!(told(&again), expected);

    let tokenizer = tokenizer(dir.path(), TEMPLATE);
    let tokens = dir.path().join("tokens.arrow");
    data::tokenise(&table, &tokenizer, &tokens, 2).unwrap();
    let cache = TokenCache::open(&tokens).unwrap();
    for vote in &votes {
        let cut = cache.row(&vote.prompt, &vote.chosen, vote.chosen_ending()).unwrap();
        let ended = cache.row(&vote.prompt, &vote.rejected, vote.rejected_ending()).unwrap();
        assert_ne!(cut.ids.last(), Some(&tokenizer.end_id()));
        assert_eq!(ended.ids.last(), Some(&tokenizer.end_id()));
        assert_eq!(cache.row(&vote.prompt, &vote.chosen, Ending::Finished), None);
    }
}

#[test]
fn whether_a_response_ended_is_read_from_texts_and_unknown_where_nothing_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("v.csv");
    fs_err::write(&source, "rater,q,one,two,pick,x,y\nu,a,b,c,1,True,false\nu,d,e,f,2,0,1\n").unwrap();
    let (votes, _) = ingest(&card(LAYOUT, "finished = ['x', 'y']").unwrap(), &source, &all()).unwrap();
    assert_eq!(told(&votes), [("b", Some(true), Some(false)), ("f", Some(true), Some(false))]);
    let (votes, _) = ingest(&card(LAYOUT, "").unwrap(), &source, &by_prompt(0.0, 0.0)).unwrap();
    assert_eq!(told(&votes), [("b", None, None), ("f", None, None)]);
    assert_eq!(votes[0].chosen_ending(), Ending::Finished);
    fs_err::write(&source, "rater,q,one,two,pick,x,y\nu,a,b,c,1,True,stop\n").unwrap();
    let error = ingest(&card(LAYOUT, "finished = ['x', 'y']").unwrap(), &source, &all()).unwrap_err().to_string();
    assert!(error.contains("true or false, found `stop`"), "{error}");
    let error = card("kind = 'prism'", "finished = ['x', 'y']").unwrap_err().to_string();
    assert!(error.contains("`finished` in [columns] only with the layouts `votes` and `pairs`"), "{error}");
}

#[test]
fn pairs_with_the_columns_of_the_canonical_table_need_no_card_for_their_endings() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("v.jsonl");
    let row =
        r#"{"user_id":"u","prompt":"q","chosen":"a","rejected":"b","chosen_finished":true,"rejected_finished":false}"#;
    fs_err::write(&source, format!("{row}\n")).unwrap();
    let (card, _) = data::recognise(&[source.display().to_string()]).unwrap();
    let (votes, _) = ingest(&card, &source, &all()).unwrap();
    assert_eq!(told(&votes), [("a", Some(true), Some(false))]);
}

#[test]
fn moments_of_the_old_type_of_spark_do_not_become_others() {
    use parquet::data_type::{ByteArray, ByteArrayType, Int96, Int96Type};
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("v.parquet");
    let columns = ["rater", "q", "one", "two", "pick"].map(|name| format!("required binary {name} (UTF8);")).concat();
    let schema = parquet::schema::parser::parse_message_type(&format!("message m {{ {columns} required int96 at; }}"));
    let file = fs_err::File::create(&source).unwrap().into_parts().0;
    let mut writer =
        parquet::file::writer::SerializedFileWriter::new(file, schema.unwrap().into(), std::sync::Arc::default())
            .unwrap();
    let mut group = writer.next_row_group().unwrap();
    for value in ["u", "q", "a", "b", "1"] {
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&[ByteArray::from(value)], None, None).unwrap();
        column.close().unwrap();
    }
    let mut column = group.next_column().unwrap().unwrap();
    // 1 January 2500, by its Julian day: in nanoseconds since 1970 it does not fit into 64 bits.
    let mut moment = Int96::new();
    moment.set_data(0, 0, 2_634_167);
    column.typed::<Int96Type>().write_batch(&[moment], None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    let ingested = ingest(&card(LAYOUT, "timestamp = 'at'").unwrap(), &source, &all());
    let seconds = (2_634_167 - 2_440_588) * 86_400i64;
    match ingested {
        Ok((votes, _)) => assert_eq!(votes[0].timestamp, Some(seconds * 1_000_000)),
        Err(error) => assert!(error.to_string().contains("2500"), "{error}"),
    }
}
