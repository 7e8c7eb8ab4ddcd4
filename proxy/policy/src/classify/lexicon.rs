//! The words the classifier knows, in English, German, Spanish, French, Chinese and Japanese. Data and nothing else.
//!
//! An entry matches at the start of a word, without regard to case, and must end where a word ends; a trailing `*` lifts the second
//! rule (`optimi*` finds optimise, optimization, optimieren). Chinese and Japanese have no spaces: their entries match anywhere.
//! Entries stand between bars; of two that fit, the longer one counts.

/// What a word tells.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Hint {
    /// Needs several steps of thought.
    Reason,
    /// Asks for an explanation.
    Explain,
    /// Mathematics.
    Maths,
    /// Programming.
    Code,
    /// A piece of writing.
    Compose,
    /// Make it shorter.
    Summarize,
    /// Say it in other words or another language.
    Rewrite,
    /// The person wants care.
    Thorough,
    /// The person wants little.
    Brief,
    /// A fact.
    Lookup,
    /// Something to know.
    Notice,
    /// Hello and thanks.
    Greeting,
    /// Looks like another entry and is none.
    Nothing,
}

/// Languages with spaces.
pub(super) const WORDS: &[(Hint, &str)] = &[
    (
        Hint::Reason,
        "prove|proof*|derive|deduce|analy*|compare|comparing|contrast|evaluate|evaluating|assess*|critique|critically|\
         optimi*|trade-off*|tradeoff*|trade off*|pros and cons|architect*|strateg*|design a|design an|design the|\
         root cause|diagnos*|hypothes*|implications|reconcile|prioriti*|justify|justification|argue|counterargument*|\
         step by step plan|what would happen if|puzzle|riddle|plan a|threat model*|formal|formally|\
         consistency|why does|why do|why is|rigorous proof|refute|disprove|weigh the|failure modes|second-order|feasibility|\
         beweis*|leite her|leite die|herleit*|analysier*|analyse|vergleich*|bewert*|beurteil*|abwäg*|wäge|\
         vor- und nachteile|entwirf|entwurf|strategie*|ursache*|begründe*|widerspr*|widerleg*|rätsel|hypothese*|abwägung|erörter*|\
         priorisier*|plane eine*|\
         demuestra*|demostra*|analiza*|análisis|compara*|evalúa*|evalua*|ventajas|estrategia*|diseña*|justifica*|\
         argumenta*|acertijo|deduce*|hipótesis|causa raíz|planifica*|refuta*|pros y contras|razona*|\
         démontre*|prouve*|preuve*|déduis*|analysez|compare*|comparez|évalue*|avantages|stratégie*|conçois|conçoi*|concevoir|justifie*|\
         argumente*|énigme|hypothèse*|réfute*|cause profonde|planifie*|raisonne*|inconvénients",
    ),
    (
        Hint::Explain,
        "explain*|why|why do i|why does my|help me|plan my|can you help|how does|how do|how would|how can i|how should|describe|difference*|walk me through|teach me|\
         what causes|recommend*|suggest*|ideas for|advice|tips|outline|\
         erklär*|hilf|hilfst|hilf mir|warum|wieso|weshalb|wie funktioniert|wie kann ich|beschreib*|unterschied*|empfiehl|empfehl*|tipps|schlag*|vorschläge|\
         ideen für|ratschl*|\
         explica*|explíca*|ayudas|ayúdame|puedes ayudar|por qué|diferencia*|cómo funciona|cómo puedo|describe*|recomienda*|recomiénda*|sugiere*|sugiéreme|consejos|ideas para|\
         explique*|expliquer|aide-moi|aides|aidez-moi|pourquoi|comment fonctionne*|comment puis-je|décri*|différence*|recommande*|suggère*|conseils|conseille*|\
         propose-moi|idées",
    ),
    (
        Hint::Maths,
        "theorem*|lemma|integral*|integrate|derivative*|equation*|eigenvalue*|matrix|matrices|probabilit*|polynomial*|modulo|\
         prime number*|primes|irrational*|logarithm*|calculus|combinatori*|induction|converge*|variance|bayes*|geometr*|\
         trigonometr*|solve|solve for|divisible|square root*|standard deviation|factorial|inequality|\
         satz von|löse|induktion|vollständiger induktion|gleichung*|ableitung*|integral|wahrscheinlichkeit*|primzahl*|vollständige induktion|irrational|teilbar|quadratwurzel|\
         wurzel aus|konvergier*|ungleichung|\
         teorema*|resuelve|ecuaci*|derivada*|probabilidad*|números primos|matriz|integral|raíz cuadrada|divisible por|inducción|converge|varianza|\
         théorème*|résous|résoudre|équation*|dérivée*|probabilité*|nombres premiers|matrice*|intégrale*|racine carrée|racine de|récurrence|irrationnel*|\
         divisible par|variance",
    ),
    (
        Hint::Code,
        "function|functions|def|class|struct|impl|fn|const|import|return|async|await|lambda|algorithm*|refactor*|debug*|compile*|\
         segfault|segmentation fault|null pointer|indexerror|typeerror|valueerror|keyerror|stack trace|traceback|exception|regex|sql|select|rust|python|javascript|typescript|golang|kotlin|java|c++|bash|\
         docker*|kubernetes|scheduler|exactly-once|api|unit test*|code|script|bug|deadlock|race condition*|data structure*|complexity|thread-safe|mutex|\
         concurren*|implement*|distributed|postgres*|css|html|react|json|git|webhook|endpoint|database|query|queries|\
         algorithmus|funktion|funktionen|programmier*|implementier*|quellcode|fehlermeldung|skript|datenbank*|unittest*|schnittstelle|\
         algoritmo*|función|programa|código|implementa*|depura*|refactoriza*|base de datos|consulta sql|pruebas unitarias|\
         algorithme*|fonction|programme|implémente*|débogue*|refactorise*|base de données|requête sql|tests unitaires|script python",
    ),
    (
        Hint::Compose,
        "essay|report|article|proposal|whitepaper|story|chapter|screenplay|business plan|roadmap|curriculum|speech|blog post|\
         cover letter|email|e-mail|letter|poem|haiku|toast|invitation|press release|job description|product description|lyrics|\
         aufsatz|bericht|geschäftsplan|gutachten|geschichte|gedicht|brief an|einen brief|eine rede|entwirf eine e-mail|entwirf einen brief|einladung|bewerbung*|pressemitteilung|artikel|\
         ensayo|informe|artículo|plan de negocio|historia|un cuento|cuento corto|poema|carta|correo|discurso|invitación|\
         dissertation|rapport|plan d'affaires|histoire|conte|poème|lettre|courriel|discours|invitation|un mail|un article",
    ),
    (
        Hint::Summarize,
        "summari*|summary|main takeaways|takeaways|what is this text about|tl;dr|tldr|condense*|shorten|key points|main points|boil down|recap|gist|\
         fasse|fass|zusammenfass*|worum geht es|kürze|kernpunkte|hauptpunkte|\
         resume|resumen|síntesis|sintetiza*|de qué trata|resúmeme|resumir|condensa|puntos clave|puntos principales|\
         résume*|résumé|synthèse|de quoi parle|résumez|condense|points clés|points principaux",
    ),
    (
        Hint::Rewrite,
        "translate*|how do you say|how do i say|rewrite|rephrase*|paraphrase*|proofread|reword|fix the typo*|fix typo*|fix the grammar|correct the spelling|\
         correct the grammar|make this sound|polish this|more formal|more polite|simplify this|uppercase|lowercase|turn this into|\
         übersetz*|wie sagt man|umformulier*|formuliere*|korrigier*|schreibe um|schreib um|höflicher|verbessere den stil|großbuchstaben|\
         traduce*|tradúceme|cómo se dice|reescribe*|reformula*|corrige*|parafrasea*|más formal|mayúsculas|\
         traduis*|traduire|comment dit-on|comment dit on|traduisez|réécri*|reformule*|corrige|corrigez|paraphrase|plus formel|plus poli*|majuscules",
    ),
    (
        Hint::Thorough,
        "step by step|step-by-step|think hard*|think carefully|think deeply|think it through|take your time|in depth|in-depth|in detail|\
         detailed|thorough*|comprehensive*|rigorous*|exhaustive*|show your work|show your reasoning|leave nothing out|every step|\
         schritt für schritt|ausführlich*|gründlich*|detailliert*|genau nach|denk genau|denke genau|denk gut nach|denke gut nach|im detail|umfassend*|\
         sorgfältig*|\
         paso a paso|en detalle|detallad*|exhaustiv*|rigurosa*|rigor|a fondo|en profundidad|piensa bien|piénsalo bien|con cuidado|\
         étape par étape|en détail|détaillé*|rigoureus*|approfondi*|réfléchis bien|prends ton temps|exhaustive|soigneusement|pas à pas",
    ),
    (
        Hint::Brief,
        "briefly|in brief|in one word|one word|one sentence|a single sentence|in one line|one line|yes or no|short answer|quick question|\
         just the|only the|in a word|keep it short|be concise|concisely|\
         kurz|in einem wort|ein wort|in einem satz|ein satz|ja oder nein|knapp*|stichwortartig|nur die|nur den|nur das|\
         brevemente|en breve|en una palabra|una palabra|una frase|sí o no|respuesta corta|solo la|solo el|sé breve|\
         brièvement|en un mot|un mot|une phrase|oui ou non|en bref|réponse courte|juste le|juste la|sois bref",
    ),
    (
        Hint::Lookup,
        "what is the capital|what's the capital|capital of|define|definition of|spell|synonym*|antonym*|opposite of|convert|what time|\
         what day|what year|when was|when did|when is|who is|who was|who wrote|who painted|who invented|where is|how many|how much|how old|\
         how tall|how far|how long|plural of|meaning of|what does|list the|name one|name three|what colo*|\
         hauptstadt|definiere|was heißt|was bedeutet|wie viele|wie viel|wer ist|wer war|wer hat|wer schrieb|wer malte|wann war|wann wurde|\
         wann ist|wo liegt|wo ist|wie alt|wie hoch|wie weit|wie lange|wie spät|welches jahr|welche farbe|buchstabier*|mehrzahl|gegenteil|\
         synonyme für|nenne|rechne|\
         capital de|qué significa|cuántos|cuántas|cuánto|quién es|quién fue|quién escribió|quién pintó|quién inventó|cuándo fue|cuándo es|cuándo|\
         dónde está|dónde|sinónimo*|antónimo*|cómo se escribe|qué hora|qué día|qué año|de qué color|plural de|contrario de|\
         convierte|define*|\
         capitale|définis*|que signifie|que veut dire|combien|qui est|qui était|qui a|quand|où se trouve|où est|synonyme*|antonyme*|contraire de|\
         quelle heure|quel jour|quelle année|en quelle année|de quelle couleur|pluriel de|convertis*|épelle*",
    ),
    (
        Hint::Notice,
        "fyi|for your information|just so you know|just letting you know|heads up|heads-up|for the record|quick update|note to self|\
         just to let you know|please note|\
         zur info|zur information|nur zur info|nur damit du|nur dass du|übrigens|kurze info|hinweis|zur kenntnis|\
         para tu información|para que lo sepas|te informo|te aviso|aviso|por cierto|ten en cuenta|que sepas|\
         pour info|pour information|pour ton information|sache que|je t'informe|au fait|à noter|petite info|je te signale",
    ),
    (
        Hint::Greeting,
        "hi|hello|hey|hiya|yo|good morning|good evening|good afternoon|good night|thanks|thank you|thx|bye|goodbye|ok|okay|cool|great|\
         how are you|what's up|what is new|morning|evening|ping|test|see you|cheers|nice to meet you|\
         hallo|guten morgen|guten tag|guten abend|gute nacht|danke*|vielen dank|tschüss|servus|moin|na|alles klar|wie geht*|bis später|bis morgen|\
         grüß*|\
         hola|buenos días|buenas*|gracias|muchas gracias|adiós|qué tal|qué hay de nuevo|cómo estás|hasta luego|hasta mañana|encantad*|\
         bonjour|bonsoir|bonne nuit|bonne journée|salut|merci*|au revoir|ça va|quoi de neuf|coucou|à bientôt|à demain|comment vas-tu|enchanté*",
    ),
    (
        Hint::Nothing,
        "kurzgeschichte|report to|class of|first class|great wall|great britain|great depression|code of conduct|python snake|select a|\
         how long ago|test results|kurzfristig|test the|hey jude|cool down|de java",
    ),
];

/// Languages without.
pub(super) const CJK: &[(Hint, &str)] = &[
    (
        Hint::Reason,
        "证明|推导|分析|比较|对比|评估|优化|设计一|设计个|权衡|利弊|优缺点|策略|论证|推理|架构|根本原因|反驳|规划|假设|谜题|判断|\
         証明|導出|比較|評価|最適化|設計して|設計し|戦略|論証|推論|利点と欠点|長所と短所|根本原因|反論|仮説|考察|検討|計画を立て|トレードオフ|メリットとデメリット",
    ),
    (
        Hint::Explain,
        "解释|帮我|帮忙|为什么|区别|怎么|如何|介绍|建议|推荐|描述|原理|説明|手伝って|計画|なぜ|違い|どうして|どうやって|仕組み|おすすめ|提案|アドバイス|コツ|教えて",
    ),
    (
        Hint::Maths,
        "定理|方程|积分|导数|概率|矩阵|质数|素数|数学归纳|方程式|積分|微分|確率|行列|無理数|无理数|收敛|収束|整除|平方根|不等式|数学的帰納法|方差|分散を",
    ),
    (
        Hint::Code,
        "代码|段错误|报错|错误信息|算法|函数|编程|实现|调试|数据结构|复杂度|脚本|数据库|接口|单元测试|重构|正则|死锁|并发|コード|エラー|セグメンテーション|アルゴリズム|関数|プログラム|実装|デバッグ|スクリプト|\
         データベース|単体テスト|リファクタ|正規表現|クエリ|デッドロック|バグ",
    ),
    (
        Hint::Compose,
        "文章|论文|报告|故事|商业计划|诗|作文|邮件|写一封|演讲|小说|信|レポート|物語|事業計画|エッセイ|メール|手紙|スピーチ|小説|俳句|記事|招待状",
    ),
    (
        Hint::Summarize,
        "总结|概括|大意|讲了什么|这篇文章讲|讲的是什么|摘要|归纳|要点|缩短|要約|まとめて|何について書|文章は何について|要点|短縮|概要",
    ),
    (
        Hint::Rewrite,
        "翻译|怎么说|大写|小写|改写|润色|改成|校对|纠正|换一种说法|翻訳|訳して|何と言|大文字|小文字|書き直|言い換え|校正|添削|直して|丁寧な表現|敬語に",
    ),
    (
        Hint::Thorough,
        "一步一步|一步步|逐步|详细|深入|仔细|全面|认真思考|好好想|ステップバイステップ|段階的|詳しく|詳細|じっくり|丁寧に|徹底的|よく考えて|順を追って|包括的",
    ),
    (
        Hint::Brief,
        "简短|一句话|一个词|简要|是或否|简单回答|简单说|用一个|簡潔|一言|短く|一文で|一語|手短|はいかいいえ|ひとこと",
    ),
    (
        Hint::Lookup,
        "首都|是什么意思|多少|是谁|哪里|哪儿|哪年|哪一年|几点|几个|几天|几岁|多高|多远|多大|什么时候|同义词|反义词|怎么写|什么颜色|怎么读|\
         とは何|いくつ|誰|どこ|何時|何年|何日|何人|何色|いつ|同義語|類義語|反対語|対義語|読み方|高さは|意味は|どれくらい|何語",
    ),
    (
        Hint::Notice,
        "仅供参考|顺便说|通知你|告诉你一声|提醒一下|供你参考|跟你说一下|知会|ちなみに|参考まで|お知らせ|念のため|ご報告|共有です|連絡です",
    ),
    (
        Hint::Greeting,
        "你好|您好|大家好|谢谢|再见|早上好|晚上好|晚安|嗨|在吗|多谢|こんにちは|おはよう|こんばんは|ありがとう|さようなら|はじめまして|おやすみ|やあ|元気|お疲れ",
    ),
    (
        Hint::Nothing,
        "信息|信用|相信|信号|写信号|自信|信頼|通信|受信|送信|诗人|詩人|いつも|いつか|どこでも|誰でも|怎么样",
    ),
];
