//! A page with plots and pictures. It needs no other file, and runs no script.

use std::fmt::Write;

use html_escape::encode_text;
use sd_runtime::pipeline::Format;

use super::chart::{self, chart, stroke};
use super::measure::{Distance, picture};
use super::recording::Recording;
use super::report::{Loop, Pair, Report, Side, Verdict};
use crate::page;
use crate::quality::amplified;

const STYLE: &str = "\
.shares { display: flex; height: 1rem; max-width: 50rem; border-radius: .2rem; overflow: hidden; background: var(--line) }
.bit_equal { color: var(--c2) } .different { color: var(--c1) }
";

/// Bytes of pictures behind which no more are shown.
const MOST_BYTES: usize = 16 << 20;

/// The page. Recordings are those of the report's pairs.
pub(super) fn html(
    report: &Report,
    reference: &Recording,
    variants: &[Recording],
) -> anyhow::Result<String> {
    let style = format!("{}{STYLE}", chart::STYLE);
    let mut page = page::begin("Why two pictures of one seed differ", &style);
    let field = |name: &str| match &report.request[name] {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let text = format!(
        "{}. Seed {}, {} steps of {}, guidance {}, {}x{} pixels.",
        field("prompt"),
        field("seed"),
        field("steps"),
        field("sampler"),
        field("guidance_scale"),
        report.size[0],
        report.size[1],
    );
    page::paragraph(&mut page, &text);
    let Side { name, machine, .. } = &report.reference;
    let text = format!("Reference: {name}; {}.", machine.onnxruntime);
    page::paragraph(&mut page, &text);
    page::table(&mut page, &rows(report));
    for failure in &report.failed {
        page::paragraph(&mut page, &format!("Left out: {}.", failure.problem));
    }
    let [psnr, ssim] = report.visually_equal;
    let text = format!(
        "Pictures are bit-equal if all bytes are, visually equal from {psnr} dB and SSIM {ssim} on. A cause's share is what the picture \
         changes when this part of the variant takes the place of the reference's, of the sum of all such changes (mean squares)."
    );
    page::paragraph(&mut page, &text);
    write_charts(&mut page, report);
    let mut shown = 0;
    for (i, (pair, variant)) in report.pairs.iter().zip(variants).enumerate() {
        write_pair(&mut page, report, pair, i)?;
        if pair.verdict != Verdict::BitEqual && shown < MOST_BYTES {
            let before = page.len();
            write_pictures(&mut page, reference, variant, pair)?;
            shown += page.len() - before;
        }
        page.push_str("</section>\n");
    }
    page::end(&mut page);
    Ok(page)
}

/// The table of all pairs: a head, then a row for each.
fn rows(report: &Report) -> Vec<Vec<String>> {
    let head = [
        "variant",
        "picture",
        "PSNR, dB",
        "SSIM",
        "hash bits",
        "bytes off",
        "UNet call",
        "first step past",
        "largest cause",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(report.pairs.iter().map(|pair| {
        let Pair { picture, .. } = pair;
        let psnr = picture.difference.psnr_db;
        vec![
            pair.variant.name.clone(),
            pair.verdict.words().to_owned(),
            psnr.map_or_else(|| "equal".to_owned(), |psnr| format!("{psnr:.1}")),
            format!("{:.4}", picture.difference.ssim),
            picture.hash_bits.to_string(),
            picture.bytes.to_string(),
            relative(&pair.unet.distance),
            past(&pair.whole_run),
            pair.cause_words().unwrap_or_default(),
        ]
    }));
    rows
}

fn write_charts(page: &mut String, report: &Report) {
    if report.pairs.is_empty() {
        return;
    }
    page.push_str("<section>\n<h2>Divergence over the run</h2>\n<ul class=\"legend\">\n");
    for (i, pair) in report.pairs.iter().enumerate() {
        let _ = writeln!(
            page,
            "<li><svg viewBox=\"0 0 32 8\"><path {} d=\"M0 4H32\"/></svg> {}</li>",
            stroke(i),
            encode_text(&pair.variant.name)
        );
    }
    page.push_str("</ul>\n<div class=\"charts\">\n");
    let mut plot = |title: &str, across: &str, of: fn(&Pair) -> &Loop| {
        let lines = report.pairs.iter().map(|pair| {
            let distances = of(pair).distances.iter();
            distances.map(|distance| distance.relative_l2).collect()
        });
        let lines: Vec<chart::Line> = lines.collect();
        chart(page, title, across, &lines, report.threshold);
    };
    plot(
        "Whole run: relative L2 distance of the state after each step",
        "step",
        |pair| &pair.whole_run,
    );
    plot(
        "Closed loop: the same from the reference's noise and prompts",
        "step",
        |pair| &pair.closed_loop,
    );
    plot(
        "Open loop: estimates for the reference's states, call by call",
        "call",
        |pair| &pair.open_loop,
    );
    page.push_str("</div>\n");
    let equal = |pair: &&Pair| pair.whole_run.distances.iter().all(|d| d.equal);
    let equal = report.pairs.iter().filter(equal);
    let equal: Vec<&str> = equal.map(|pair| pair.variant.name.as_str()).collect();
    if !equal.is_empty() {
        let text = format!(
            "Without a line, since every bit of every state is the reference's: {}.",
            equal.join("; ")
        );
        page::paragraph(page, &text);
    }
    page.push_str("</section>\n");
}

/// What a pair's parts are, one by one.
fn write_pair(page: &mut String, report: &Report, pair: &Pair, i: usize) -> anyhow::Result<()> {
    let verdict = serde_json::to_value(pair.verdict)?;
    let _ = writeln!(
        page,
        "<section>\n<h2><span style=\"color: var(--c{})\">&#9632;</span> {}: <span class=\"{}\">{}</span></h2>",
        i % chart::COLOURS,
        encode_text(&pair.variant.name),
        verdict.as_str().unwrap_or_default(),
        pair.verdict.words()
    );
    if pair.cause.is_some() {
        page.push_str("<div class=\"shares\">");
        for share in pair.shares.iter().filter(|share| share.percent > 0.0) {
            let _ = write!(
                page,
                "<span title=\"{}\" style=\"width: {:.2}%; background: var(--c{})\"></span>",
                share.cause.words(),
                share.percent,
                share.cause as usize
            );
        }
        page.push_str("</div>\n");
        page.push_str("<p>");
        for share in pair.shares.iter().filter(|share| share.percent >= 0.05) {
            let (words, colour) = (share.cause.words(), share.cause as usize);
            let _ = write!(
                page,
                "<span style=\"color: var(--c{colour})\">&#9632;</span> {words} {:.1} % ",
                share.percent
            );
        }
        page.push_str("</p>\n");
    }
    let row = |name: String, distance: &Distance| {
        let mut cells = vec![name];
        match distance.equal {
            true => cells.extend(["0", "0", "1"].map(str::to_owned)),
            false => cells.extend([
                format!("{:.2e}", distance.max_abs),
                relative(distance),
                distance
                    .cosine
                    .map_or_else(String::new, |x| format!("{x:.6}")),
            ]),
        }
        cells
    };
    let head = ["", "max abs", "relative L2", "cosine"].map(str::to_owned);
    let mut rows = vec![head.to_vec(), row("first noise".to_owned(), &pair.noise)];
    rows.push(row("text encoder".to_owned(), &pair.text));
    let call = pair.unet.call + 1;
    rows.push(row(format!("UNet, call {call} alone"), &pair.unet.distance));
    for (name, of) in [
        ("open loop, worst call", &pair.open_loop),
        ("closed loop, worst step", &pair.closed_loop),
        ("whole run, worst step", &pair.whole_run),
    ] {
        let size = |distance: &&Distance| distance.relative_l2.unwrap_or_default();
        let worst = of
            .distances
            .iter()
            .max_by(|a, b| size(a).total_cmp(&size(b)));
        rows.extend(worst.map(|worst| row(name.to_owned(), worst)));
    }
    rows.push(row("VAE on the same latents".to_owned(), &pair.vae));
    rows.push(row(
        "picture before rounding".to_owned(),
        &pair.rounding.before,
    ));
    page::table(page, &rows);
    let text = format!(
        "States pass {} {}. Rounding to 8 bits hides {} differences and shows {}.",
        report.threshold,
        match pair.whole_run.first_past {
            Some(step) => format!("at step {}", step + 1),
            None => "at no step".to_owned(),
        },
        pair.rounding.hidden_bytes,
        pair.rounding.shown_bytes
    );
    page::paragraph(page, &text);
    Ok(())
}

/// Reference, variant, and what differs.
fn write_pictures(
    page: &mut String,
    reference: &Recording,
    variant: &Recording,
    pair: &Pair,
) -> anyhow::Result<()> {
    let [a, b] = [reference, variant].map(picture);
    let factor = u8::MAX / pair.picture.most_levels.max(1);
    let difference = amplified(&a, &b, factor);
    page.push_str("<div class=\"row\">\n");
    for (picture, caption) in [
        (&a, "reference".to_owned()),
        (&b, pair.variant.name.clone()),
        (
            &difference,
            match factor {
                1 => "difference".to_owned(),
                factor => format!("difference, {factor} times as strong"),
            },
        ),
    ] {
        page::figure(page, "", &picture.encode(Format::Png, "")?, &caption);
    }
    page.push_str("</div>\n");
    Ok(())
}

fn relative(distance: &Distance) -> String {
    match distance.relative_l2 {
        _ if distance.equal => "0".to_owned(),
        Some(relative) => format!("{relative:.1e}"),
        None => String::new(),
    }
}

fn past(of: &Loop) -> String {
    of.first_past
        .map_or_else(|| "none".to_owned(), |step| (step + 1).to_string())
}
