//! `docs/playbooks.md` has the table of names that conditions know.

mod support;

use shoal_schemas::condition::NAMES;

const BEGIN: &str =
    "<!-- names: made by `SHOAL_BLESS=1 cargo test -p shoal-schemas` from schemas/src/condition.rs -->\n";
const END: &str = "<!-- end of names -->\n";

#[test]
fn the_table_of_names_is_that_of_the_code() {
    let path = support::root().join("docs/playbooks.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("docs/playbooks.md has the line that begins the table");
    let (_, after) = rest.split_once(END).expect("docs/playbooks.md has the line that ends the table");
    let mut table = String::from("| name | type | |\n| --- | --- | --- |\n");
    for (name, kind, meaning) in NAMES {
        table.push_str(&format!("| `{name}` | {kind} | {meaning} |\n"));
    }
    support::check(&path, &format!("{before}{BEGIN}{table}{END}{after}"));
}
