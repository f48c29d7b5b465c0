//! `docs/errors.md` has the table of codes, and a word on each.

mod support;

use shoal_schemas::Code;

const BEGIN: &str = "<!-- codes: made by `SHOAL_BLESS=1 cargo test -p shoal-schemas` from schemas/src/code.rs -->\n";
const END: &str = "<!-- end of codes -->\n";

fn table() -> String {
    let mut table = String::from("| code | retryable | meaning |\n| --- | --- | --- |\n");
    for code in Code::ALL {
        let retryable = if code.retryable() { "yes" } else { "no" };
        // Paragraphs of a doc comment become one cell.
        let meaning: Vec<&str> = code.meaning().split_whitespace().collect();
        table.push_str(&format!("| [`{code}`](#{code}) | {retryable} | {} |\n", meaning.join(" ").replace('|', "\\|")));
    }
    table
}

#[test]
fn the_table_of_codes_is_that_of_the_code() {
    let path = support::root().join("docs/errors.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("docs/errors.md has the line that begins the table");
    let (_, after) = rest.split_once(END).expect("docs/errors.md has the line that ends the table");
    support::check(&path, &format!("{before}{BEGIN}{}{END}{after}", table()));
}

#[test]
fn every_code_has_a_word_on_what_to_do() {
    let page = std::fs::read_to_string(support::root().join("docs/errors.md")).unwrap();
    for code in Code::ALL {
        assert!(page.contains(&format!("\n### {code}\n")), "docs/errors.md has no heading `### {code}`");
    }
}
