use std::time::Instant;
fn main() {
    lm::tune_allocator();
    let c = lm::Compute::new("cpu", "auto", None).unwrap();
    let dir = std::path::Path::new("/tmp/base");
    if !dir.exists() {
        lm::import_gguf(".deps/base/SmolLM2-135M-Instruct.Q4_1.gguf".as_ref(), dir).unwrap();
    }
    let t = Instant::now();
    let tok = text::Tokenizer::from_folder(dir).unwrap();
    let m = lm::Lm::load(dir, &c).unwrap();
    println!("load {:?} {:?}", t.elapsed(), c);
    let src = std::fs::read_to_string("datasets/everyday/prompts.toml").unwrap();
    let train: Vec<String> = src
        .lines()
        .filter(|l| l.starts_with("  \""))
        .map(|l| l.trim().trim_end_matches(',').trim_matches('"').to_string())
        .take(120)
        .collect();
    let sys = std::env::args().nth(1).unwrap_or("Answer in one or two sentences.".into());
    let max: usize = std::env::args().nth(2).map_or(64, |x| x.parse().unwrap());
    let prompts: Vec<Vec<i64>> = train
        .iter()
        .map(|p| {
            let mut v = vec![];
            if !sys.is_empty() {
                v.push(text::Message::system(&sys));
            }
            v.push(text::Message::user(p));
            tok.prompt(&v).unwrap()
        })
        .collect();
    let s = lm::Sampling { max_new_tokens: max, temperature: Some(1.0), stop_ids: tok.stop_ids().to_vec() };
    let mut out = vec![];
    let t = Instant::now();
    let mut n = 0;
    for (i, chunk) in prompts.chunks(8).enumerate() {
        let seeds: Vec<[u8; 32]> = (0..chunk.len() * 8).map(|j| run::derive(1, &[&format!("{i} {j}")])).collect();
        let samples = lm::generate(&m, None, chunk, &seeds, &s);
        n += samples.iter().map(|s| s.ids.len() + 1).sum::<usize>();
        for (j, sm) in samples.iter().enumerate() {
            out.push(serde_json::json!({"prompt": train[i*8 + j/8], "answer": tok.decode(&sm.ids).unwrap(), "finished": sm.finished, "n": sm.ids.len()}));
        }
        if i % 4 == 0 {
            println!(
                "{} tok in {:?}: {:.0} tok/s; prompt len {}",
                n,
                t.elapsed(),
                n as f64 / t.elapsed().as_secs_f64(),
                chunk[0].len()
            );
        }
    }
    println!("{} tok {:.0}/s", n, n as f64 / t.elapsed().as_secs_f64());
    std::fs::write("/tmp/samples.json", serde_json::to_string(&out).unwrap()).unwrap();
}
