//! Text to expression: tokens, then recursive descent, types checked on the way.

use super::{CONDITION_BYTES, CONDITION_DEPTH, Comparison, Expression, InvalidCondition, Name, Type};

/// What may be compared with an outcome.
const OUTCOMES: [&str; 3] = ["passed", "failed", "skipped"];

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Number(i64),
    Comparison(Comparison),
    Open,
    Close,
    End,
}

impl Token {
    fn shown(&self) -> String {
        match self {
            Self::Word(word) => format!("`{}`", word.chars().take(64).collect::<String>()),
            Self::Text(text) => format!("\"{}\"", text.chars().take(64).collect::<String>()),
            Self::Number(number) => number.to_string(),
            Self::Comparison(comparison) => format!("`{comparison}`"),
            Self::Open => "`(`".to_owned(),
            Self::Close => "`)`".to_owned(),
            Self::End => "the end".to_owned(),
        }
    }
}

struct Parser<'a> {
    tokens: Vec<(usize, Token)>,
    next: usize,
    earlier: &'a [&'a str],
    depth: u32,
}

pub(super) fn condition(text: &str, earlier: &[&str]) -> Result<Expression, InvalidCondition> {
    if text.len() > CONDITION_BYTES {
        return Err(wrong(1, format!("longer than {CONDITION_BYTES} bytes")));
    }
    let mut parser = Parser { tokens: tokens(text)?, next: 0, earlier, depth: 0 };
    let (at, _) = parser.peek();
    let expression = parser.any()?;
    parser.expect(&Token::End, "`and`, `or`, or the end")?;
    truth(at, expression)
}

fn wrong(at: usize, problem: String) -> InvalidCondition {
    InvalidCondition { at, problem }
}

fn truth(at: usize, expression: Expression) -> Result<Expression, InvalidCondition> {
    match expression.kind() {
        Type::Truth => Ok(expression),
        kind => Err(wrong(at, format!("{kind} stands where a truth is expected; compare it with something"))),
    }
}

impl Parser<'_> {
    fn peek(&self) -> (usize, &Token) {
        // The last token is the end, and is never passed.
        let (at, token) = &self.tokens[self.next.min(self.tokens.len() - 1)];
        (*at, token)
    }

    fn is_word(&self, wanted: &str) -> bool {
        matches!(self.peek().1, Token::Word(word) if word == wanted)
    }

    fn expect(&mut self, wanted: &Token, words: &str) -> Result<(), InvalidCondition> {
        let (at, token) = self.peek();
        if token != wanted {
            return Err(wrong(at, format!("found {}, expected {words}", token.shown())));
        }
        self.next += 1;
        Ok(())
    }

    fn chain(
        &mut self,
        word: &str,
        part: fn(&mut Self) -> Result<Expression, InvalidCondition>,
        join: fn(Vec<Expression>) -> Expression,
    ) -> Result<Expression, InvalidCondition> {
        let (mut at, _) = self.peek();
        let first = part(self)?;
        if !self.is_word(word) {
            return Ok(first);
        }
        let mut all = vec![truth(at, first)?];
        while self.is_word(word) {
            self.next += 1;
            (at, _) = self.peek();
            let part = part(self)?;
            all.push(truth(at, part)?);
        }
        Ok(join(all))
    }

    fn any(&mut self) -> Result<Expression, InvalidCondition> {
        self.chain("or", Self::all, Expression::Or)
    }

    fn all(&mut self) -> Result<Expression, InvalidCondition> {
        self.chain("and", Self::negation, Expression::And)
    }

    fn deeper<T>(&mut self, part: fn(&mut Self) -> Result<T, InvalidCondition>) -> Result<T, InvalidCondition> {
        if self.depth == CONDITION_DEPTH {
            return Err(wrong(self.peek().0, format!("nested deeper than {CONDITION_DEPTH}")));
        }
        self.depth += 1;
        let part = part(self);
        self.depth -= 1;
        part
    }

    fn negation(&mut self) -> Result<Expression, InvalidCondition> {
        if !self.is_word("not") {
            return self.comparison();
        }
        self.next += 1;
        let (at, _) = self.peek();
        let inner = self.deeper(Self::negation)?;
        Ok(Expression::Not(Box::new(truth(at, inner)?)))
    }

    fn comparison(&mut self) -> Result<Expression, InvalidCondition> {
        let left = self.operand()?;
        let (at, Token::Comparison(comparison)) = self.peek() else { return Ok(left) };
        let comparison = *comparison;
        self.next += 1;
        let (right_at, _) = self.peek();
        let right = self.operand()?;
        let (one, other) = (left.kind(), right.kind());
        if one != other {
            return Err(wrong(
                at,
                format!("`{comparison}` stands between {one} and {other}; both must be of one type"),
            ));
        }
        if !matches!(comparison, Comparison::Equal | Comparison::Unequal) && one != Type::Number {
            return Err(wrong(at, format!("`{comparison}` compares numbers, not {one} with {other}")));
        }
        for sides in [(&left, &right), (&right, &left)] {
            if let (Expression::Name(Name::Outcome(_)), Expression::Text(text)) = sides
                && !OUTCOMES.contains(&text.as_str())
            {
                return Err(wrong(
                    right_at,
                    format!("no step ends as \"{text}\"; expected \"passed\", \"failed\" or \"skipped\""),
                ));
            }
        }
        if let (at, Token::Comparison(second)) = self.peek() {
            return Err(wrong(at, format!("found `{second}` after a comparison, expected `and`, `or`, or the end")));
        }
        Ok(Expression::Compare(Box::new(left), comparison, Box::new(right)))
    }

    fn operand(&mut self) -> Result<Expression, InvalidCondition> {
        let (at, token) = self.peek();
        let expression = match token {
            Token::Word(word) => match word.as_str() {
                "true" => Expression::Truth(true),
                "false" => Expression::Truth(false),
                "and" | "or" | "not" => return Err(self.no_operand()),
                name => Expression::Name(Name::read(name, self.earlier).map_err(|problem| wrong(at, problem))?),
            },
            Token::Text(text) => Expression::Text(text.clone()),
            Token::Number(number) => Expression::Number(*number),
            Token::Open => {
                self.next += 1;
                let inner = self.deeper(Self::any)?;
                self.expect(&Token::Close, "`)`")?;
                return Ok(inner);
            }
            Token::Comparison(_) | Token::Close | Token::End => return Err(self.no_operand()),
        };
        self.next += 1;
        Ok(expression)
    }

    fn no_operand(&self) -> InvalidCondition {
        let (at, token) = self.peek();
        wrong(at, format!("found {}, expected a name, a text, a number, `true`, `false` or `(`", token.shown()))
    }
}

fn is_word(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || "_-.".contains(letter)
}

/// Every token with its place in characters from 1.
fn tokens(text: &str) -> Result<Vec<(usize, Token)>, InvalidCondition> {
    let letters: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut i = 0;
    while let Some(letter) = letters.get(i) {
        let (at, second) = (i + 1, letters.get(i + 1));
        let (token, length) = match (letter, second) {
            (letter, _) if letter.is_whitespace() => {
                i += 1;
                continue;
            }
            ('(', _) => (Token::Open, 1),
            (')', _) => (Token::Close, 1),
            ('=', Some('=')) => (Token::Comparison(Comparison::Equal), 2),
            ('!', Some('=')) => (Token::Comparison(Comparison::Unequal), 2),
            ('<', Some('=')) => (Token::Comparison(Comparison::AtMost), 2),
            ('>', Some('=')) => (Token::Comparison(Comparison::AtLeast), 2),
            ('<', _) => (Token::Comparison(Comparison::Less), 1),
            ('>', _) => (Token::Comparison(Comparison::More), 1),
            ('=', _) => return Err(wrong(at, "found `=`, expected `==`".to_owned())),
            ('!', _) => return Err(wrong(at, "found `!`, expected `not` or `!=`".to_owned())),
            ('&', _) => return Err(wrong(at, "found `&`, expected `and`".to_owned())),
            ('|', _) => return Err(wrong(at, "found `|`, expected `or`".to_owned())),
            ('"' | '\'', _) => quoted(&letters[i..]).map_err(|problem| wrong(at, problem.to_owned()))?,
            (letter, _) if is_word(*letter) => {
                let word: String = letters[i..].iter().take_while(|letter| is_word(**letter)).collect();
                let length = word.chars().count();
                let token = match letter {
                    '0'..='9' | '-' | '.' => Token::Number(
                        word.parse()
                            .map_err(|_| wrong(at, format!("`{word}` is no whole number of at most 63 bits")))?,
                    ),
                    _ => Token::Word(word),
                };
                (token, length)
            }
            (letter, _) => {
                return Err(wrong(at, format!("found `{letter}`, expected a name, a text, a number or a comparison")));
            }
        };
        tokens.push((at, token));
        i += length;
    }
    tokens.push((letters.len() + 1, Token::End));
    Ok(tokens)
}

/// A text in quotes, and how many characters it takes.
fn quoted(letters: &[char]) -> Result<(Token, usize), &'static str> {
    let quote = letters[0];
    let mut text = String::new();
    let mut i = 1;
    loop {
        match (letters.get(i), letters.get(i + 1)) {
            (Some('\\'), Some(escaped @ ('\\' | '"' | '\''))) => {
                text.push(*escaped);
                i += 2;
            }
            (Some('\\'), _) => return Err("`\\` in a text stands before a quote or another `\\` only"),
            (Some(letter), _) if *letter == quote => return Ok((Token::Text(text), i + 1)),
            (Some(letter), _) => {
                text.push(*letter);
                i += 1;
            }
            (None, _) => return Err("the text has no end, expected a quote"),
        }
    }
}
