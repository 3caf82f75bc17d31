//! Pictures as SVG: a frame with two axes, and what is drawn in it. They carry their own style, need
//! no font and no other file, and are readable on light and dark.

mod axis;
pub mod curve;
mod loss;
mod losses;
mod memory;

use std::fmt::Write;

pub use axis::{Axis, Scale};
pub use loss::loss_svg;
pub use losses::losses_svg;
pub use memory::{memory_svg, memory_trace_svg};

/// Pixels of the picture.
const WIDTH: f64 = 860.0;
/// Pixels between the frame and the picture's left, right and top.
const LEFT: f64 = 72.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 56.0;
/// Pixels of the frame.
const FRAME_WIDTH: f64 = WIDTH - LEFT - RIGHT;
const FRAME_HEIGHT: f64 = 300.0;
/// Pixels below the frame: the axis' numbers and name.
const BELOW: f64 = 52.0;
/// Pixels of a line of the legend.
const LEGEND_LINE: f64 = 22.0;
/// Colours of runs, which then come again.
const RUN_COLORS: usize = 8;
/// Pixels of a character of a label, generously: fonts differ.
const CHARACTER: f64 = 6.6;

const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#1f2328}\
.title{font-size:15px;font-weight:600}\
.soft{fill:#59636e}\
.ground{fill:#ffffff}\
.frame{fill:none;stroke:#818b98}\
.grid{stroke:#d1d9e0;stroke-width:.7}\
.line{fill:none;stroke:#0b62c4;stroke-width:1.8;stroke-linejoin:round}\
.dot{fill:#0b62c4;stroke:#ffffff;stroke-width:1.5}\
.area{fill:#0b62c4;fill-opacity:.13}\
.level{stroke-width:1.4;stroke-dasharray:6 4}\
.first{stroke:#57606a}.second{stroke:#c4320a}\
text.first{fill:#57606a;stroke:none}text.second{fill:#c4320a;stroke:none}\
.band0{fill:#8c959f;fill-opacity:.30}.band1{fill:#d29922;fill-opacity:.30}\
.band2{fill:#54aeff;fill-opacity:.12}.band3{fill:#2da44e;fill-opacity:.26}\
.band4{fill:#bf3989;fill-opacity:.30}\
.series{fill:none;stroke-width:1.8;stroke-linejoin:round}\
.run0{stroke:#0b62c4}.run1{stroke:#c4320a}.run2{stroke:#1a7f37}.run3{stroke:#8250df}\
.mark{fill:none;stroke-width:4}\
.run4{stroke:#9a6700}.run5{stroke:#bf3989}.run6{stroke:#57606a}.run7{stroke:#1b7c83}\
@media(prefers-color-scheme:dark){\
text{fill:#e6edf3}.soft{fill:#9198a1}.ground{fill:#0d1117}.frame{stroke:#656c76}\
.grid{stroke:#2a313c}.line{stroke:#6cb6ff}.dot{fill:#6cb6ff;stroke:#0d1117}.area{fill:#6cb6ff}\
.first{stroke:#9198a1}.second{stroke:#ff8c69}text.first{fill:#9198a1}text.second{fill:#ff8c69}}";

/// Which of two levels a line across the frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    First,
    Second,
}

/// A picture being drawn. Coordinates are those of its axes.
#[derive(Debug)]
pub struct Chart {
    x: Axis,
    y: Axis,
    body: String,
    legend: Vec<(String, String)>,
    title: String,
    /// Boxes of text in the frame, in pixels: left, top, right, bottom.
    taken: Vec<[f64; 4]>,
}

impl Chart {
    /// A frame with grid lines and numbers at the axes' ticks.
    pub fn new(title: &str, x: Axis, y: Axis) -> Self {
        let mut chart = Self {
            x,
            y,
            body: String::new(),
            legend: Vec::new(),
            title: title.to_owned(),
            taken: Vec::new(),
        };
        chart.axes();
        chart
    }

    /// A coloured band over the frame's whole height; `color` is below 5, and `title` shows under
    /// the pointer.
    pub fn band(&mut self, from: f64, to: f64, color: usize, title: &str) {
        let (left, right) = (self.px(from), self.px(to));
        let width = (right - left).max(0.5);
        let title = escaped(title);
        let _ = write!(
            self.body,
            "<rect class=\"band{color}\" x=\"{left:.1}\" y=\"{TOP}\" width=\"{width:.1}\" \
             height=\"{FRAME_HEIGHT}\"><title>{title}</title></rect>"
        );
    }

    /// Straight lines from point to point, over an area down to the axis.
    pub fn area(&mut self, points: &[(f64, f64)]) {
        let [Some(first), Some(last)] = [points.first(), points.last()] else { return };
        let line = self.path(points);
        let bottom = TOP + FRAME_HEIGHT;
        let (left, right) = (self.px(first.0), self.px(last.0));
        let _ = write!(
            self.body,
            "<path class=\"area\" d=\"{line}L{right:.1} {bottom:.1}L{left:.1} {bottom:.1}Z\"/>\
             <path class=\"line\" d=\"{line}\"/>"
        );
    }

    /// Straight lines from point to point.
    pub fn line(&mut self, points: &[(f64, f64)]) {
        let line = self.path(points);
        let _ = write!(self.body, "<path class=\"line\" d=\"{line}\"/>");
    }

    /// Steps that keep each point's height up to the next point, and the last's to the frame's end.
    pub fn steps(&mut self, points: &[(f64, f64)]) {
        let mut corners = Vec::with_capacity(2 * points.len());
        for (i, &(x, y)) in points.iter().enumerate() {
            corners.push((x, y));
            corners.push((points.get(i + 1).map_or(self.x.to(), |next| next.0), y));
        }
        let line = self.path(&corners);
        let _ = write!(self.body, "<path class=\"line\" d=\"{line}\"/>");
    }

    /// A dashed line across the frame, named at its right end; none above the frame.
    pub fn level(&mut self, y: f64, level: Level, label: &str) {
        if y > self.y.to() {
            return;
        }
        let class = if level == Level::First { "first" } else { "second" };
        let (at, right) = (self.py(y), LEFT + FRAME_WIDTH);
        let _ = write!(
            self.body,
            "<line class=\"level {class}\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" \
             y2=\"{at:.1}\"/>"
        );
        let places = [(right - 6.0, at - 6.0), (right - 6.0, at + 15.0)];
        self.text(label, class, "end", &places);
    }

    /// A dot with a label beside it, where there is room; `title` shows under the pointer.
    pub fn point(&mut self, x: f64, y: f64, label: &str, title: &str) {
        let (px, py) = (self.px(x), self.py(y));
        let title = escaped(title);
        let _ = write!(
            self.body,
            "<circle class=\"dot\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"4.5\"><title>{title}</title>\
             </circle>"
        );
        self.text(label, "label", "start", &[(px + 7.0, py - 8.0), (px + 7.0, py + 18.0)]);
    }

    /// A line of the legend below the frame, with the colour of a band.
    pub fn legend(&mut self, color: usize, text: String) {
        self.legend.push((format!("band{color}"), text));
    }

    /// Straight lines from point to point, one of several runs, and its name in the legend.
    pub fn series(&mut self, run: usize, name: &str, points: &[(f64, f64)]) {
        let (line, color) = (self.path(points), run % RUN_COLORS);
        let title = escaped(name);
        let _ = write!(
            self.body,
            "<path class=\"series run{color}\" d=\"{line}\"><title>{title}</title></path>"
        );
        self.legend.push((format!("mark run{color}"), name.to_owned()));
    }

    /// The picture as the text of an SVG file.
    pub fn finish(mut self) -> String {
        let bottom = TOP + FRAME_HEIGHT + BELOW;
        let mut rows = 0.0;
        let mut left = LEFT;
        for (class, text) in std::mem::take(&mut self.legend) {
            let width = 28.0 + CHARACTER * text.chars().count() as f64;
            if left + width > WIDTH - RIGHT && left > LEFT {
                (left, rows) = (LEFT, rows + 1.0);
            }
            let (y, text_x, text) = (bottom + rows * LEGEND_LINE, left + 18.0, escaped(&text));
            let _ = write!(
                self.body,
                "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{y}\" width=\"12\" height=\"12\"/>\
                 <text x=\"{text_x:.1}\" y=\"{:.1}\">{text}</text>",
                y + 10.5
            );
            left += width;
        }
        let height = if left > LEFT { bottom + (rows + 1.0) * LEGEND_LINE } else { bottom };
        let title = escaped(&self.title);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
             viewBox=\"0 0 {WIDTH} {height}\" role=\"img\"><title>{title}</title>\
             <style>{STYLE}</style>\
             <rect class=\"ground\" width=\"{WIDTH}\" height=\"{height}\"/>\
             <text class=\"title\" x=\"{LEFT}\" y=\"26\">{title}</text>{}</svg>\n",
            self.body
        )
    }

    /// Grid lines, numbers, names and the frame.
    fn axes(&mut self) {
        let (right, bottom) = (LEFT + FRAME_WIDTH, TOP + FRAME_HEIGHT);
        for (tick, text) in self.x.ticks() {
            let x = self.px(tick);
            let _ = write!(
                self.body,
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
                 <text class=\"soft\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
                bottom + 18.0
            );
        }
        for (tick, text) in self.y.ticks() {
            let y = self.py(tick);
            let _ = write!(
                self.body,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                LEFT - 8.0,
                y + 4.0
            );
        }
        let _ = write!(
            self.body,
            "<rect class=\"frame\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{FRAME_WIDTH}\" \
             height=\"{FRAME_HEIGHT}\"/>\
             <text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text class=\"soft\" x=\"{LEFT}\" y=\"{:.1}\">{}</text>",
            LEFT + FRAME_WIDTH / 2.0,
            bottom + 38.0,
            escaped(self.x.name()),
            TOP - 9.0,
            escaped(self.y.name()),
        );
    }

    fn path(&self, points: &[(f64, f64)]) -> String {
        let mut out = String::new();
        for (i, &(x, y)) in points.iter().enumerate() {
            let command = if i == 0 { 'M' } else { 'L' };
            let _ = write!(out, "{command}{:.1} {:.1}", self.px(x), self.py(y));
        }
        out
    }

    /// Text at the first of some places (its baseline's start or end, in pixels) where it lies in
    /// the frame and over no other text; nowhere if there is none.
    fn text(&mut self, text: &str, class: &str, anchor: &str, places: &[(f64, f64)]) {
        let width = CHARACTER * text.chars().count() as f64;
        let room = |&(x, y): &(f64, f64)| {
            let left = if anchor == "end" { x - width } else { x };
            [left, y - 11.0, left + width, y + 3.0]
        };
        let is_free = |place: &&(f64, f64)| {
            let [left, top, right, bottom] = room(place);
            let inside = left >= LEFT
                && right <= LEFT + FRAME_WIDTH
                && top >= TOP
                && bottom <= TOP + FRAME_HEIGHT;
            inside
                && self.taken.iter().all(|other| {
                    right < other[0] || other[2] < left || bottom < other[1] || other[3] < top
                })
        };
        let Some(place) = places.iter().find(is_free) else { return };
        self.taken.push(room(place));
        let (x, y) = place;
        let text = escaped(text);
        let _ = write!(
            self.body,
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        );
    }

    fn px(&self, x: f64) -> f64 {
        LEFT + FRAME_WIDTH * self.x.share(x)
    }

    fn py(&self, y: f64) -> f64 {
        TOP + FRAME_HEIGHT * (1.0 - self.y.share(y))
    }
}

/// Text as XML and HTML hold it; characters that they can't hold are replaced.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart() -> Chart {
        let axis = |name| Axis::new(name, Scale::Linear, 0.0, 10.0);
        Chart::new("A & B", axis("x"), axis("y < z"))
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(escaped("a<b> & \"c\"\u{0}"), "a&lt;b&gt; &amp; &quot;c&quot;\u{fffd}");
        let svg = chart().finish();
        assert!(svg.contains("A &amp; B") && svg.contains("y &lt; z"));
    }

    #[test]
    fn places_are_those_of_the_axes() {
        let mut chart = chart();
        chart.steps(&[(0.0, 10.0), (5.0, 0.0)]);
        let middle = LEFT + FRAME_WIDTH / 2.0;
        let (right, bottom) = (LEFT + FRAME_WIDTH, TOP + FRAME_HEIGHT);
        let path = format!(
            "M{LEFT:.1} {TOP:.1}L{middle:.1} {TOP:.1}L{middle:.1} {bottom:.1}L{right:.1} {bottom:.1}"
        );
        assert!(chart.finish().contains(&path));
    }

    #[test]
    fn labels_never_lie_over_each_other() {
        let mut chart = chart();
        for _ in 0..3 {
            chart.point(5.0, 5.0, "label", "more");
        }
        let svg = chart.finish();
        assert_eq!(svg.matches(">label</text>").count(), 2);
        assert_eq!(svg.matches("<circle").count(), 3);
    }

    #[test]
    fn a_level_above_the_frame_is_left_out() {
        let mut chart = chart();
        chart.level(11.0, Level::Second, "far");
        chart.level(9.0, Level::First, "near");
        let svg = chart.finish();
        assert!(!svg.contains("far") && svg.contains("near"));
    }
}
