//! A page with the figures, and the pictures side by side. It needs no other file, and runs no script.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::Context;
use html_escape::{encode_double_quoted_attribute, encode_text};

use super::AMPLIFIED;
use super::compare::LEVELS;
use crate::report::{Pair, Quality, Report, Variant, Way};

/// The page's name.
pub(super) const FILE: &str = "report.html";

/// Folder of the pictures, beside it.
pub(super) const PICTURES: &str = "pictures";

/// Bytes of pictures behind which no more are shown: a page that a phone opens. Those with the worst PSNR come first.
const MOST_BYTES: usize = 16 << 20;

const STYLE: &str = "\
body { font: 16px/1.4 system-ui, sans-serif; margin: 1rem auto; max-width: 70rem; padding: 0 .7rem; \
color: #222; background: #fff }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
section { border-top: 2px solid #ddd; margin-top: 2rem } h2 { font-size: 1.1rem }
.row { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .4rem; max-width: 50rem }
figure { margin: 0 } img { width: 100%; height: auto; display: block; image-rendering: pixelated }
figcaption { font-size: .8rem; color: #555; overflow-wrap: anywhere } .reference { grid-column: 1; position: sticky; top: .4rem; align-self: start }
";

/// The file of a picture in a way's folder.
pub(super) fn file(folder: &str, prompt: usize, seed: u64) -> String {
    format!("{folder}/{prompt:03}-{seed}.png")
}

/// The file of what differs from the reference.
pub(super) fn difference(folder: &str, prompt: usize, seed: u64) -> String {
    format!("{folder}/{prompt:03}-{seed}-difference.png")
}

/// The table of the ways: a head, the reference, and its variants.
pub(super) fn rows(quality: &Quality) -> Vec<Vec<String>> {
    let mut head: Vec<String> = ["", "PSNR mean, dB", "worst", "equal", "SSIM mean", "worst"]
        .map(str::to_owned)
        .to_vec();
    head.push(format!("pixels > {LEVELS} levels off"));
    head.push("s/picture".to_owned());
    let judged = quality.reference.hits.is_some();
    if judged {
        let wishes = ["colour", "shape", "position", "size", "background"];
        head.extend(wishes.map(|wish| format!("{wish} hit")));
    }
    let after = |way: &Way| {
        let mut cells = vec![format!("{:.2}", way.seconds_per_picture)];
        if let Some(hits) = &way.hits {
            let shares = [
                hits.colour_percent,
                hits.shape_percent,
                hits.position_percent,
                hits.size_percent,
                hits.background_percent,
            ];
            cells.extend(shares.map(|share| format!("{share:.1} %")));
        }
        cells
    };
    let mut reference = vec![format!("{} (reference)", name(&quality.reference))];
    reference.extend(["", "", "", "", "", ""].map(str::to_owned));
    reference.extend(after(&quality.reference));
    let mut rows = vec![head, reference];
    rows.extend(quality.variants.iter().map(|variant| {
        let mut cells = vec![
            name(&variant.way),
            decibels(variant.psnr_mean_db),
            decibels(variant.psnr_worst_db),
            format!("{} of {}", variant.equal, variant.pictures.len()),
            format!("{:.4}", variant.ssim_mean),
            format!("{:.4}", variant.ssim_worst),
            format!("{:.2} %", variant.off_percent),
        ];
        cells.extend(after(&variant.way));
        cells
    }));
    rows
}

/// The page. Pictures are read from the folder.
pub(super) fn html(report: &Report, quality: &Quality, folder: &Path) -> anyhow::Result<String> {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n",
        title = encode_text(&format!("Pictures of {}", report.model.display())),
    );
    let (prompts, seeds) = (quality.prompts.len(), quality.seeds.len());
    let text = format!(
        "{prompts} prompts x {seeds} seeds, {}x{} pixels, {} with {} steps, guidance {}. {}, {}, {} threads, sdbench {}.",
        report.size[0],
        report.size[1],
        quality.sampler,
        quality.steps,
        quality.guidance_scale,
        report.processor,
        report.instructions,
        report.threads,
        report.version,
    );
    let _ = writeln!(page, "<p>{}</p>", encode_text(&text));
    write_table(&mut page, &rows(quality));
    let order = worst_first(quality);
    let (mut pictures, mut shown) = (String::new(), 0);
    for &number in &order {
        if pictures.len() >= MOST_BYTES {
            break;
        }
        write_pictures(&mut pictures, quality, number, folder)?;
        shown += 1;
    }
    let _ = writeln!(
        page,
        "<p>{shown} of {} pictures follow, those with the lowest PSNR first; all are in the folder <code>{PICTURES}</code>. \
         Differences are shown {AMPLIFIED} times as strong.</p>",
        order.len(),
    );
    page.push_str(&pictures);
    page.push_str("</body>\n</html>\n");
    Ok(page)
}

/// Numbers of the pictures in the order of the worst PSNR of their variants.
fn worst_first(quality: &Quality) -> Vec<usize> {
    let worst = |number: usize| {
        let pairs = quality
            .variants
            .iter()
            .filter_map(|variant| variant.pictures.get(number));
        let psnrs = pairs.filter_map(|pair| pair.difference.psnr_db);
        psnrs.fold(f64::INFINITY, f64::min)
    };
    let count = quality.prompts.len() * quality.seeds.len();
    let mut order: Vec<_> = (0..count).map(|number| (worst(number), number)).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    order.into_iter().map(|(_, number)| number).collect()
}

fn write_table(page: &mut String, rows: &[Vec<String>]) {
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

/// A picture of the reference, and beside it those of the variants with what differs.
fn write_pictures(
    page: &mut String,
    quality: &Quality,
    number: usize,
    folder: &Path,
) -> anyhow::Result<()> {
    let seeds = quality.seeds.len();
    let (prompt, seed) = (number / seeds, quality.seeds[number % seeds]);
    let title = format!("{} (seed {seed})", quality.prompts[prompt]);
    let _ = writeln!(
        page,
        "<section>\n<h2>{}</h2>\n<div class=\"row\">",
        encode_text(&title)
    );
    let mut figure = |attributes: &str, file: &str, caption: &str| {
        let path = folder.join(file);
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let _ = writeln!(
            page,
            "<figure{attributes}><img alt=\"{}\" src=\"data:image/png;base64,{}\"><figcaption>{}</figcaption></figure>",
            encode_double_quoted_attribute(caption),
            base64(&bytes),
            encode_text(caption),
        );
        anyhow::Ok(())
    };
    let place = |way: &Way, file: fn(&str, usize, u64) -> String| {
        file(way.folder.as_deref().unwrap_or(PICTURES), prompt, seed)
    };
    let (reference, rows) = (&quality.reference, quality.variants.len());
    // It stays in sight beside all rows of variants.
    let beside = format!(" class=\"reference\" style=\"grid-row: 1 / span {rows}\"");
    let caption = format!("{} (reference)", name(reference));
    figure(&beside, &place(reference, file), &caption)?;
    for Variant { way, pictures, .. } in &quality.variants {
        let Some(Pair { difference: of, .. }) = pictures.get(number) else {
            continue;
        };
        let figures = match of.psnr_db {
            None => "equal".to_owned(),
            Some(psnr) => format!("{psnr:.1} dB, SSIM {:.4}", of.ssim),
        };
        figure("", &place(way, file), &format!("{}: {figures}", name(way)))?;
        let off = format!("difference; {:.2} % of pixels off", of.off_percent);
        figure("", &place(way, difference), &off)?;
    }
    page.push_str("</div>\n</section>\n");
    Ok(())
}

/// A way's name for people.
fn name(way: &Way) -> String {
    let folder = way.model.file_name().unwrap_or(way.model.as_os_str());
    format!("{} {}", folder.to_string_lossy(), way.compute)
}

fn decibels(psnr: Option<f64>) -> String {
    psnr.map_or_else(|| "equal".to_owned(), |psnr| format!("{psnr:.1}"))
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
}
