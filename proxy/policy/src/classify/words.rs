//! The words the classifier knows, in six languages. Only data and the index over it.
//!
//! An entry matches at the start of a word, without regard to ASCII case, and must end where a word ends; a trailing `*` lifts
//! the second rule (`optimi*` finds optimise, optimization, optimieren). Chinese and Japanese have no spaces: their entries
//! match anywhere. Entries stand between bars.

use std::collections::BTreeMap;
use std::sync::LazyLock;

/// What a word tells.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Hint {
    /// Needs several steps of thought.
    Reason,
    /// Asks for an explanation.
    Explain,
    /// Mathematics.
    Maths,
    /// Programming.
    Code,
    /// A long piece of writing.
    Compose,
    /// The person wants care.
    Thorough,
    /// The person wants little.
    Brief,
    /// A simple transformation or a fact.
    Lookup,
    /// Hello and thanks.
    Greeting,
}

const WORDS: &[(Hint, &str)] = &[
    (
        Hint::Reason,
        "prove|proof*|derive|deduce|analy*|compare|contrast|evaluate|assess|critique|critically|\
         optimi*|trade-off*|tradeoff*|pros and cons|architect*|strateg*|design a|design an|\
         root cause|diagnos*|hypothes*|implications|reconcile|prioriti*|justify|argue|\
         step by step plan|what would happen if|puzzle|riddle|plan a|threat model|formal*|\
         consistency|why does|why do|why is|beweis*|leite her|herleit*|analysier*|vergleich*|\
         bewert*|beurteil*|abwäg*|wäge|vor- und nachteile|entwirf|entwurf|strategie*|ursache*|\
         begründe*|widerspr*|rätsel|demuestra*|demostra*|analiza*|análisis|compara*|evalúa*|\
         evalua*|ventajas|estrategia*|diseña*|justifica*|argumenta*|acertijo|démontre*|prouve*|\
         déduis*|analyse*|compare*|évalue*|avantages|stratégie*|conçois*|concevoir|justifie*|\
         argumente*|énigme",
    ),
    (
        Hint::Explain,
        "explain|why|how does|how do|how would|describe|difference*|summari*|erklär*|warum|wieso|\
         weshalb|wie funktioniert|beschreib*|unterschied*|fasse|explica*|por qué|diferencia*|\
         resum*|explique*|pourquoi|comment fonctionne|décri*|différence*|résum*",
    ),
    (
        Hint::Maths,
        "theorem*|lemma|integral*|integrate|derivative*|equation*|eigenvalue*|matrix|matrices|\
         probabilit*|polynomial*|modulo|prime number*|primes|irrational|logarithm*|calculus|\
         combinatori*|induction|converge*|variance|bayes*|geometr*|trigonometr*|solve for|\
         satz von|gleichung*|ableitung*|wahrscheinlichkeit*|primzahl*|vollständige induktion|\
         teorema*|ecuaci*|derivada*|probabilidad*|números primos|matriz|integral|théorème*|\
         équation*|dérivée*|probabilité*|nombres premiers|matrice*|intégrale*",
    ),
    (
        Hint::Code,
        "function|def|class|struct|impl|fn|const|import|return|async|await|lambda|algorithm*|\
         refactor*|debug*|compile*|segfault|stack trace|traceback|exception|regex|sql|select|\
         rust|python|javascript|typescript|golang|kotlin|java|c++|bash|docker*|kubernetes|api|\
         unit test*|code|script|bug|deadlock|race condition|data structure*|complexity|\
         thread-safe|mutex|concurren*|implement*|distributed|postgres*|algorithmus|funktion|\
         programmier*|implementier*|quellcode|fehlermeldung|algoritmo*|función|programa|código|\
         implementa*|depura*|algorithme*|fonction|programme|implémente*|débogue*",
    ),
    (
        Hint::Compose,
        "essay|report|article|proposal|whitepaper|story|chapter|screenplay|business plan|roadmap|\
         curriculum|speech|blog post|cover letter|email|letter|poem|aufsatz|bericht|\
         geschäftsplan|gutachten|geschichte|gedicht|brief an|e-mail|ensayo|informe|artículo|\
         plan de negocio|historia|poema|carta|correo|dissertation|rapport|plan d'affaires|\
         histoire|poème|lettre|courriel",
    ),
    (
        Hint::Thorough,
        "step by step|think hard*|think carefully|think deeply|in depth|in-depth|in detail|\
         detailed|thorough*|comprehensive*|rigorous*|exhaustive*|show your work|\
         show your reasoning|schritt für schritt|ausführlich*|gründlich*|detailliert*|genau nach|\
         paso a paso|en detalle|detallad*|exhaustiv*|rigurosa*|a fondo|étape par étape|en détail|\
         détaillé*|rigoureus*|approfondi*",
    ),
    (
        Hint::Brief,
        "briefly|in one word|one word|one sentence|in one line|yes or no|short answer|tl;dr|tldr|\
         quick question|just the|only the|in a word|keep it short|kurz|in einem wort|\
         in einem satz|ja oder nein|knapp|brevemente|en una palabra|una frase|sí o no|\
         respuesta corta|brièvement|en un mot|une phrase|oui ou non|en bref",
    ),
    (
        Hint::Lookup,
        "translate|what is the capital|what's the capital|capital of|define|definition of|spell|\
         synonym*|antonym*|convert|what time|what day|what year|when was|when did|who is|who was|\
         who wrote|where is|how many|how old|how tall|fix the typo*|fix typo*|\
         correct the spelling|uppercase|lowercase|plural of|meaning of|what does|list the|\
         übersetz*|hauptstadt|definiere|was heißt|was bedeutet|wie viele|wer ist|wer war|\
         wann war|wo liegt|wie alt|buchstabier*|mehrzahl|traduce*|capital de|qué significa|\
         cuántos|cuántas|quién es|quién fue|cuándo fue|dónde está|sinónimo*|traduis*|traduire|\
         capitale|définis*|que signifie|combien|qui est|qui était|quand|où se trouve|synonyme*",
    ),
    (
        Hint::Greeting,
        "hi|hello|hey|hiya|yo|good morning|good evening|good night|thanks|thank you|thx|bye|\
         goodbye|ok|okay|cool|great|how are you|what's up|ping|test|hallo|guten morgen|guten tag|\
         guten abend|danke*|tschüss|servus|moin|wie geht*|hola|buenos días|buenas*|gracias|adiós|\
         qué tal|bonjour|bonsoir|salut|merci*|au revoir|ça va",
    ),
];

const CJK: &[(Hint, &str)] = &[
    (
        Hint::Reason,
        "证明|推导|分析|比较|对比|评估|优化|设计一|权衡|利弊|优缺点|策略|论证|推理|架构|証明|導出|比較|評価|最適化|設計して|戦略|論証|推論|利点と欠点|長所と短所",
    ),
    (
        Hint::Explain,
        "解释|为什么|区别|总结|説明|なぜ|違い|要約|どうして",
    ),
    (
        Hint::Maths,
        "定理|方程|积分|导数|概率|矩阵|质数|无理数|数学归纳|方程式|積分|微分|確率|行列|素数|無理数",
    ),
    (
        Hint::Code,
        "代码|算法|函数|编程|实现|调试|数据结构|复杂度|コード|アルゴリズム|関数|プログラム|実装|デバッグ",
    ),
    (
        Hint::Compose,
        "文章|论文|报告|故事|商业计划|诗|作文|レポート|物語|事業計画|エッセイ|メール",
    ),
    (
        Hint::Thorough,
        "一步一步|逐步|详细|深入|仔细|ステップバイステップ|段階的|詳しく|詳細|じっくり|丁寧に",
    ),
    (
        Hint::Brief,
        "简短|一句话|一个词|简要|是或否|简单回答|簡潔|一言|短く|一文で",
    ),
    (
        Hint::Lookup,
        "翻译|首都|是什么意思|多少|是谁|哪里|几点|翻訳|訳して|とは何|いくつ|誰|どこ|何時",
    ),
    (
        Hint::Greeting,
        "你好|您好|谢谢|再见|早上好|晚上好|こんにちは|おはよう|こんばんは|ありがとう|さようなら|はじめまして",
    ),
];

#[derive(Debug)]
struct Entry {
    text: &'static [u8],
    open_end: bool,
    hint: Hint,
}

/// The entries by the first two letters of a word, or the first character of a CJK term; longest first, so that
/// `step by step plan` wins over `step by step`.
#[derive(Debug)]
struct Index {
    /// For each pair of letters one more than the bucket's number, or 0: most words of a text end here, after one look.
    pairs: Vec<u16>,
    buckets: Vec<Vec<Entry>>,
    cjk: BTreeMap<char, Vec<Entry>>,
}

static INDEX: LazyLock<Index> = LazyLock::new(Index::build);

impl Index {
    fn build() -> Self {
        let mut words: BTreeMap<usize, Vec<Entry>> = BTreeMap::new();
        for (hint, text) in flat(WORDS) {
            let entry = Entry::new(hint, text);
            words.entry(pair(entry.text)).or_default().push(entry);
        }
        let mut pairs = vec![0; 1 << 16];
        for (number, pair) in words.keys().enumerate() {
            if let (Some(slot), Ok(number)) = (pairs.get_mut(*pair), u16::try_from(number + 1)) {
                *slot = number;
            }
        }
        let mut buckets: Vec<Vec<Entry>> = words.into_values().collect();
        for bucket in &mut buckets {
            bucket.sort_by_key(|entry| std::cmp::Reverse(entry.text.len()));
        }
        let mut cjk: BTreeMap<char, Vec<Entry>> = BTreeMap::new();
        for (hint, text) in flat(CJK) {
            if let Some(first) = text.chars().next() {
                cjk.entry(first).or_default().push(Entry::new(hint, text));
            }
        }
        for bucket in cjk.values_mut() {
            bucket.sort_by_key(|entry| std::cmp::Reverse(entry.text.len()));
        }
        Self {
            pairs,
            buckets,
            cjk,
        }
    }
}

impl Entry {
    fn new(hint: Hint, text: &'static str) -> Self {
        let stem = text.strip_suffix('*');
        Self {
            text: stem.unwrap_or(text).as_bytes(),
            open_end: stem.is_some(),
            hint,
        }
    }
}

fn flat(table: &'static [(Hint, &'static str)]) -> impl Iterator<Item = (Hint, &'static str)> {
    table
        .iter()
        .flat_map(|(hint, list)| list.split('|').map(move |text| (*hint, text)))
}

/// The hint of the phrase that starts at the start of `rest`, which is the start of a word, and the phrase's bytes.
pub(crate) fn word(rest: &[u8]) -> Option<(Hint, usize)> {
    let number = usize::from(*INDEX.pairs.get(pair(rest))?);
    let bucket = INDEX.buckets.get(number.checked_sub(1)?)?;
    let entry = bucket.iter().find(|entry| {
        rest.get(..entry.text.len())
            .is_some_and(|head| same_letters(head, entry.text))
            && (entry.open_end || !rest.get(entry.text.len()).copied().is_some_and(is_letter))
    })?;
    Some((entry.hint, entry.text.len()))
}

/// The first two letters as one number.
fn pair(text: &[u8]) -> usize {
    let first = text.first().copied().map_or(0, |byte| fold(0, byte));
    let second = text.get(1).copied().map_or(0, |byte| fold(first, byte));
    usize::from(first) << 8 | usize::from(second)
}

/// Lower case of ASCII and Latin-1 letters (`É` is C3 89, `é` C3 A9).
const fn fold(before: u8, byte: u8) -> u8 {
    match byte {
        0x80..=0x9E if before == 0xC3 => byte | 0x20,
        other => other.to_ascii_lowercase(),
    }
}

/// Whether two texts of one length are the same without regard to case.
fn same_letters(text: &[u8], lower: &[u8]) -> bool {
    let mut before = 0;
    text.iter().zip(lower).all(|(byte, wanted)| {
        let same = fold(before, *byte) == *wanted;
        before = *byte;
        same
    })
}

/// The hint of the term that starts at the start of `rest` with the character `first`, and the term's bytes.
pub(crate) fn cjk(first: char, rest: &[u8]) -> Option<(Hint, usize)> {
    let bucket = INDEX.cjk.get(&first)?;
    let entry = bucket.iter().find(|entry| rest.starts_with(entry.text))?;
    Some((entry.hint, entry.text.len()))
}

/// Whether the byte belongs to a word: ASCII letters and digits, and every byte of a character beyond ASCII.
pub(crate) const fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte >= 0x80
}
