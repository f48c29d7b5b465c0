//! `docs/doctor.md` has the table of what doctor finds.

mod support;

use shoal_schemas::doctor::FindingCode;

const BEGIN: &str =
    "<!-- findings: made by `SHOAL_BLESS=1 cargo test -p shoal-schemas` from schemas/src/doctor.rs -->\n";
const END: &str = "<!-- end of findings -->\n";

fn table() -> String {
    let mut table = String::from("| code | severity | meaning |\n| --- | --- | --- |\n");
    for code in FindingCode::ALL {
        let meaning: Vec<&str> = code.meaning().split_whitespace().collect();
        table.push_str(&format!("| `{code}` | {} | {} |\n", code.severity(), meaning.join(" ").replace('|', "\\|")));
    }
    table
}

#[test]
fn the_table_of_findings_is_that_of_the_code() {
    let path = support::root().join("docs/doctor.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("docs/doctor.md has the line that begins the table");
    let (_, after) = rest.split_once(END).expect("docs/doctor.md has the line that ends the table");
    support::check(&path, &format!("{before}{BEGIN}{}{END}{after}", table()));
}
