use crate::support::*;
use engine::*;
#[tokio::test]
async fn scratch() {
  for fa in [FlashAttention::Off, FlashAttention::On] { for batch in [512u32, 128, 64, 32] { for threads in [1u16] {
    let mut ls = LoadSpec::new("/tmp/hearth/rand/rand150-q4_0.gguf"); ls.slots=2; ls.n_ctx=4096; ls.flash_attention=fa; ls.batch=batch; ls.threads=Some(threads);
    let (w, c) = load(ls).await.unwrap();
    let t = std::time::Instant::now();
    let mut s = ask(&"many words about a fox and a proxy ".repeat(70)); s.max_tokens=Some(30); s.ignore_eos=true;
    let mut g = w.generate(s).await.unwrap(); let mut p=0; let mut dm=Timings::default();
    while let Some(e)=g.next().await { match e { Event::Done{usage, timings,..} => {p=usage.prompt_tokens; dm=timings;}, _=>{} } }
    eprintln!("@@ {fa:?} batch {batch} threads {}: {p} prompt tokens {:.0} ms = {:.0} tok/s; decode {:.1} ms/token; wall {:?}", c.threads, dm.prompt_ms, f64::from(p)/dm.prompt_ms*1000.0, dm.predicted_ms/29.0, t.elapsed());
  } } }
}
