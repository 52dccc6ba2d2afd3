use super::*;
use std::io::Write;

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/golden/fixtures/formats/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn state_dict(pickle: &[u8]) -> Result<usize, String> {
    let (root, pickled) = Pickle::read(pickle)?;
    Ok(pickled.state_dict(root)?.len())
}

/// A zip file as `torch.save` writes it, around a pickle and one storage of four numbers.
fn zipped(pickle: &[u8], compression: CompressionMethod) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(vec![]));
    let options = zip::write::SimpleFileOptions::default().compression_method(compression);
    for (name, content) in [("a/data.pkl", pickle), ("a/byteorder", b"little"), ("a/data/0", &[0; 16])] {
        zip.start_file(name, options).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// `{"w": _rebuild_tensor_v2(storage "0" of 4 floats, offset, shape, strides)}`; numbers are below 256.
fn one_tensor(offset: u8, shape: [u8; 2], strides: [u8; 2]) -> Vec<u8> {
    let mut p =
        b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n".to_vec();
    p.extend(b"X\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ");
    p.extend([b'K', offset, b'K', shape[0], b'K', shape[1], 0x86, b'K', strides[0], b'K', strides[1], 0x86]);
    p.extend(b"\x89}tRs.");
    p
}

#[test]
fn both_containers_hold_the_same() {
    let (new, old) = (fixture("new.bin"), fixture("old.bin"));
    let values = |file: &[u8]| {
        let mut found = tensors(file).unwrap();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let value = |(name, place): (String, Place)| (name, place.dtype, place.shape, file[place.bytes].to_vec());
        found.into_iter().map(value).collect::<Vec<_>>()
    };
    assert_eq!(values(&new), values(&old));
    let buffer = values(&new).into_iter().find(|(name, ..)| name.ends_with("position_ids")).unwrap();
    assert_eq!((buffer.1, buffer.2), (Dtype::I64, vec![1, 14]));
    assert_eq!(buffer.3[8..16], 1u64.to_le_bytes());
}

#[test]
fn a_tensor_is_where_offset_and_shape_say() {
    let of = |pickle: Vec<u8>| tensors(&zipped(&pickle, CompressionMethod::Stored)).map(|mut t| t.remove(0).1);
    let whole = of(one_tensor(0, [2, 2], [2, 1])).unwrap();
    assert_eq!((whole.dtype, whole.shape, whole.bytes.len()), (Dtype::F32, vec![2, 2], 16));
    let last = of(one_tensor(2, [1, 2], [99, 1])).unwrap();
    assert_eq!((last.bytes.start, last.bytes.len()), (whole.bytes.start + 8, 8));
    assert!(of(one_tensor(200, [0, 2], [2, 1])).unwrap_err().contains("ends before the values"));
    for (pickle, says) in [
        (one_tensor(0, [2, 2], [1, 2]), "another order than row by row"),
        (one_tensor(1, [2, 2], [2, 1]), "ends before the values of tensor w"),
        (one_tensor(0, [255, 255], [255, 1]), "ends before the values of tensor w"),
    ] {
        assert!(of(pickle).unwrap_err().contains(says), "{says}");
    }
}

/// What other readers take all memory or the whole stack for.
#[test]
fn crafted_pickles_end_soon() {
    let nested = [&b"\x80\x02)"[..], &[0x85; 3_000_000], b"."].concat();
    assert!(state_dict(&nested).unwrap_err().contains("does not hold a state dict"));
    // Each tuple holds the one before twice.
    let mut doubled = b"\x80\x02)q\0".to_vec();
    (0..200u8).for_each(|i| doubled.extend([b'h', i, b'h', i, 0x86, b'q', i + 1]));
    doubled.push(b'.');
    assert!(state_dict(&doubled).is_err());
    let calls = [&b"\x80\x02}X\x01\0\0\0wcos\nsystem\nX\x04\0\0\0exit\x85Rs."[..]].concat();
    assert!(state_dict(&calls).unwrap_err().contains("in a form that is not known"));
    let itself = b"\x80\x02]q\0h\0a}q\x01X\x01\0\0\0wh\x01s.";
    assert_eq!(state_dict(itself), Ok(0));
    for bytes in [
        &b""[..],
        b"\x80",
        b".",
        b"(.",
        b"0",
        b"\x87.",
        b"((t.",
        b"X\xff\xff\xff\xffab",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x8a\xff",
        b"ctorch",
        b"h\x07.",
        b"R",
        b"Q",
        b"\x93",
        b"}(u(((",
        b"\x00",
        b"\x80\x02}X\x02\0\0\0\xff\xfeK\x01s.",
    ] {
        assert!(state_dict(bytes).is_err(), "{bytes:?}");
    }
}

#[test]
fn other_zip_files_say_what_they_are() {
    let other = |name: &str, content: &[u8]| {
        let mut zip = zip::ZipWriter::new(Cursor::new(vec![]));
        let stored = zip::write::SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        zip.start_file(name, stored).unwrap();
        zip.write_all(content).unwrap();
        tensors(&zip.finish().unwrap().into_inner()).unwrap_err()
    };
    assert!(other("word/document.xml", b"").contains("without data.pkl"));
    assert!(other("a/data.pkl", b"\x80\x02}.").contains("holds no tensors"));
    assert!(other("a/data.pkl", b"\x80\x02K\x01.").contains("does not hold a state dict"));
    assert!(other("a/data.pkl", &one_tensor(0, [1, 1], [1, 1])).contains("tensor w has no storage 0"));
}

/// Every cut and many changed bytes: an error or tensors inside the file, never a panic.
#[test]
fn damaged_files_are_errors() {
    for name in ["new.bin", "old.bin"] {
        let whole = fixture(name);
        let inside = |file: &[u8], what: usize| match std::panic::catch_unwind(|| tensors(file)) {
            Ok(Ok(found)) => assert!(found.iter().all(|(_, p)| p.bytes.end <= file.len()), "{name}, {what}"),
            Ok(Err(message)) => assert!(!message.is_empty()),
            Err(_) => panic!("{name}, {what}"),
        };
        for cut in (0..whole.len()).step_by(97) {
            assert!(tensors(&whole[..cut]).is_err(), "{name} cut at {cut}");
        }
        let mut changed = whole.clone();
        for at in (0..4000).chain(whole.len() - 4000..whole.len()).step_by(7) {
            for value in [0, 0xff, whole[at] ^ 0x10] {
                changed[at] = value;
                inside(&changed, at);
            }
            changed[at] = whole[at];
        }
    }
}
