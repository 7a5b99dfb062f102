//! A page with the figures, and the pictures side by side. It needs no other file, and runs no script.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::Context;
use html_escape::encode_text;

use super::AMPLIFIED;
use super::compare::LEVELS;
use crate::page;
use crate::report::{Pair, Quality, Report, Variant, Way};

/// The page's name.
pub(super) const FILE: &str = "report.html";

/// Folder of the pictures, beside it.
pub(super) const PICTURES: &str = "pictures";

/// Bytes of pictures behind which no more are shown: a page that a phone opens. Those with the worst PSNR come first.
const MOST_BYTES: usize = 16 << 20;

const STYLE: &str =
    ".reference { grid-column: 1; position: sticky; top: .4rem; align-self: start }\n";

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
    let title = format!("Pictures of {}", report.model.display());
    let mut page = page::begin(&title, STYLE);
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
    page::paragraph(&mut page, &text);
    page::table(&mut page, &rows(quality));
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
    page::end(&mut page);
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
        page::figure(page, attributes, &bytes, caption);
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
