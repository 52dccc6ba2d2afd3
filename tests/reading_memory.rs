//! Readers hold a row at a time, and refuse what has none. Alone in its file: it watches the memory of the process.

use bertft::data::config::{Column, Format};
use bertft::data::{ReadOptions, Reader};
use std::io::{Cursor, Read};

fn options(format: Format) -> ReadOptions {
    ReadOptions { format: Some(format), label: Some(Column::Name("label".into()).into()), ..ReadOptions::default() }
}

/// Gives a piece over and over, `left` times.
struct Repeat {
    piece: Vec<u8>,
    at: usize,
    left: usize,
}

impl Read for Repeat {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.piece.len() && self.left > 0 {
            (self.at, self.left) = (0, self.left - 1);
        }
        let n = (&self.piece[self.at..]).read(out)?;
        self.at += n;
        Ok(n)
    }
}

/// The most memory that this process has had so far.
fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[test]
fn memory_is_bounded_by_the_longest_row() {
    let stream = |start: &str, piece: Vec<u8>, left: usize, options: &ReadOptions| {
        let start = Cursor::new(start.as_bytes().to_vec());
        Reader::from_stream(start.chain(Repeat { at: piece.len(), piece, left }), "in", options).unwrap()
    };
    let before = peak_bytes();
    let row = format!("\"{}\n\",label\n", "some text ".repeat(300)).into_bytes();
    let rows = stream("text,label\n", row, 10_000, &options(Format::Csv));
    assert_eq!(rows.fold(0, |n, row| n + row.map_or(0, |_| 1)), 10_000);
    assert!(peak_bytes() - before < 8 << 20, "30 MB of rows took {} bytes", peak_bytes() - before);
    // What has no rows is refused at 64 MiB.
    let endless = vec![b'a'; 1 << 20];
    let error = stream("text\tlabel\n", endless, usize::MAX, &options(Format::Tsv)).next().unwrap().unwrap_err();
    assert!(error.to_string().starts_with("in:2: the line is longer than 64 MiB"), "{error}");
    let commas = vec![b','; 1 << 20];
    let error = stream("", commas, 16, &options(Format::Csv)).next().unwrap().unwrap_err();
    assert!(error.to_string().starts_with("in:1: the row has more than 1048576 fields"), "{error}");
    let line = [vec![b'a'; 1 << 20], vec![b'\n']].concat();
    let error = stream("text,label\na,b\n\"", line, usize::MAX, &options(Format::Csv)).nth(1).unwrap().unwrap_err();
    assert!(error.to_string().starts_with("in:3: a quote in this row is not closed within 64 MiB"), "{error}");
    assert!(peak_bytes() - before < 500 << 20, "{} bytes", peak_bytes() - before);
}
