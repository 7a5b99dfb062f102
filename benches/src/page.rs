//! What the pages of all commands have in common. A page needs no other file and runs no script, follows the system's choice
//! of light or dark, and is as wide as its window.

use std::fmt::Write;

use html_escape::{encode_double_quoted_attribute, encode_text};

const STYLE: &str = "\
:root { color-scheme: light dark; --back: #fff; --front: #222; --faint: #5c5c5c; --line: #ddd; --area: #f3f3f3;
--a: #0072b2; --b: #c97b00; --c: #00855f; --d: #b04f8a; --e: #4a4fc4 }
@media (prefers-color-scheme: dark) { :root { --back: #16181b; --front: #e4e4e4; --faint: #a3a3a3; --line: #3a3d42; --area: #22252a;
--a: #56b4e9; --b: #e69f00; --c: #2fbf92; --d: #d98abb; --e: #9296f5 } }
body { font: 16px/1.4 system-ui, sans-serif; margin: 1rem auto; max-width: 70rem; padding: 0 .7rem; \
color: var(--front); background: var(--back) }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left } .wide { margin-top: 1rem }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .3rem 1rem } dd { margin: 0; overflow-wrap: anywhere }
section { border-top: 2px solid var(--line); margin-top: 2rem } h2 { font-size: 1.1rem } h3 { font-size: 1rem }
.faint { color: var(--faint); font-size: .85rem }
.row { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .4rem; max-width: 50rem }
figure { margin: 0 } img { width: 100%; height: auto; display: block; image-rendering: pixelated }
figcaption { font-size: .8rem; color: var(--faint); overflow-wrap: anywhere }
@media (max-width: 30rem) { th, td { padding: .3rem; font-size: .8rem } td:first-child { white-space: normal } }
";

/// The beginning of a page, with more rules of style behind those of all pages.
pub(crate) fn begin(title: &str, style: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}{style}</style>\n</head>\n<body>\n<h1>{title}</h1>\n",
        title = encode_text(title),
    )
}

/// The end of a page.
pub(crate) fn end(page: &mut String) {
    page.push_str("</body>\n</html>\n");
}

/// A paragraph.
pub(crate) fn paragraph(page: &mut String, text: &str) {
    let _ = writeln!(page, "<p>{}</p>", encode_text(text));
}

/// A table whose first row is its head. It scrolls where the window is narrower.
pub(crate) fn table(page: &mut String, rows: &[Vec<String>]) {
    page.push_str("<div class=\"wide\">\n<table>\n");
    for (i, cells) in rows.iter().enumerate() {
        let tag = if i == 0 { "th" } else { "td" };
        page.push_str("<tr>");
        for cell in cells {
            let _ = write!(page, "<{tag}>{}</{tag}>", encode_text(cell));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table>\n</div>\n");
}

/// Names and what they stand for, in lines as long as the window is wide.
pub(crate) fn facts(page: &mut String, rows: &[(String, String)]) {
    page.push_str("<dl>\n");
    for (name, value) in rows {
        let (name, value) = (encode_text(name), encode_text(value));
        let _ = writeln!(page, "<dt>{name}</dt><dd>{value}</dd>");
    }
    page.push_str("</dl>\n");
}

/// A picture of a PNG's bytes, and what it shows. `attributes` go into its `figure`.
pub(crate) fn figure(page: &mut String, attributes: &str, png: &[u8], caption: &str) {
    let _ = writeln!(
        page,
        "<figure{attributes}><img alt=\"{}\" src=\"data:image/png;base64,{}\"><figcaption>{}</figcaption></figure>",
        encode_double_quoted_attribute(caption),
        base64(png),
        encode_text(caption),
    );
}

/// The same table in Markdown: what has a meaning there is written with a backslash.
pub(crate) fn markdown_table(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (i, cells) in rows.iter().enumerate() {
        let cells: Vec<_> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
        if i == 0 {
            let _ = writeln!(text, "|---|{}", "---:|".repeat(cells.len().max(1) - 1));
        }
    }
    text
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const SIGNS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |i: usize| three.get(i).copied().map_or(0, u32::from);
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let sign = SIGNS[(bits >> (18 - 6 * i)) as usize & 63];
            text.push(if i <= three.len() {
                char::from(sign)
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of RFC 4648, section 10.
    #[test]
    fn bytes_are_written_as_in_the_rfc() {
        let found = ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|x| base64(x.as_bytes()));
        let expected = [
            "", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn names_do_nothing_to_a_page_or_table() {
        let rows = [["name", "s"], ["<b>|", "1"]].map(|row| row.map(str::to_owned).to_vec());
        let mut page = begin("a <i>", "");
        table(&mut page, &rows);
        assert!(page.contains("<h1>a &lt;i&gt;</h1>") && page.contains("<td>&lt;b&gt;|</td>"));
        assert_eq!(
            markdown_table(&rows),
            "| name | s |\n|---|---:|\n| <b>\\| | 1 |\n"
        );
    }
}
