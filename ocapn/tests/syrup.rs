//! Syrup: vectors, properties, and damaged input.

use bytes::Bytes;
use num_bigint::BigInt;
use ocapn::syrup::{
    DECODE_DEPTH_MAX, Limits, Mode, Scanner, SyrupError, SyrupErrorKind, decode, encode,
};
use ocapn::{
    ErrorValue, Opaque, Passable, PeerLocator, Struct, Sturdyref, Swissnum, Symbol, Tagged,
};
use proptest::prelude::*;

fn read(text: &[u8], mode: Mode) -> Result<Passable, SyrupError> {
    decode(&Bytes::copy_from_slice(text), Limits::default(), mode)
}

#[test]
fn vectors_read_and_write_the_same() {
    let peer = PeerLocator::new("tcp-testing-only", "abc").with_hint("host", "127.0.0.1");
    let sturdyref = Sturdyref {
        peer,
        swissnum: Swissnum::new("swiss"),
    };
    let wire_sturdyref: &[u8] = b"<15'ocapn-sturdyref<10'ocapn-peer16'tcp-testing-only3\"abc\
        {4\"host9\"127.0.0.1}>5:swiss>";
    let opaque = Opaque::new(Symbol::new("x"), [1_u64.into(), "a".into()]);
    let tagged = Tagged {
        tag: Symbol::new("t"),
        value: true.into(),
    };
    let cases: Vec<(&[u8], Passable)> = vec![
        (b"t", true.into()),
        (b"f", false.into()),
        (b"0+", 0_u64.into()),
        (b"42+", 42_u64.into()),
        (b"1-", (-1_i64).into()),
        (b"9223372036854775808-", i64::MIN.into()),
        (b"18446744073709551615+", u64::MAX.into()),
        (
            b"18446744073709551616+",
            (BigInt::from(u64::MAX) + 1_u8).into(),
        ),
        (
            b"18446744073709551616-",
            (-BigInt::from(u64::MAX) - 1_u8).into(),
        ),
        (b"D\x3f\xf0\0\0\0\0\0\0", 1.0.into()),
        (b"D\x80\0\0\0\0\0\0\0", (-0.0).into()),
        (b"D\x7f\xf8\0\0\0\0\0\0", f64::NAN.into()),
        (b"5\"twine", "twine".into()),
        (b"2\"\xc3\xa9", "é".into()),
        (b"5'fetch", Passable::symbol("fetch")),
        (b"3:a\0c", Passable::bytes(&b"a\0c"[..])),
        (
            b"[1+2+[]]",
            vec![1_u64.into(), 2_u64.into(), Passable::List(vec![])].into(),
        ),
        (
            b"{1\"a3+1\"b1+2\"aa2+}",
            Struct::new()
                .with("aa", 2_u64)
                .with("b", 1_u64)
                .with("a", 3_u64)
                .into(),
        ),
        (b"<4'void>", Passable::Undefined),
        (b"<4'null>", Passable::Null),
        (b"<11'desc:tagged1'tt>", Passable::Tagged(Box::new(tagged))),
        (
            b"<10'desc:error2\"no>",
            Passable::Error(Box::new(ErrorValue {
                message: "no".into(),
            })),
        ),
        (wire_sturdyref, sturdyref.into()),
        (b"<1'x1+1\"a>", Passable::Opaque(opaque)),
    ];
    for (wire, value) in cases {
        let name = String::from_utf8_lossy(wire).into_owned();
        assert_eq!(read(wire, Mode::Strict).as_ref(), Ok(&value), "{name}");
        assert_eq!(encode(&value).as_deref(), Some(wire), "{name}");
    }
}

#[test]
fn lenient_reads_what_peers_send_and_strict_refuses_it() {
    let both = Struct::new().with("a", 1_u64).with("b", 2_u64);
    let cases: Vec<(&[u8], Passable)> = vec![
        (b"007+", 7_u64.into()),
        (b"0-", 0_u64.into()),
        (b"D\x7f\xf8\0\0\0\0\0\x01", f64::NAN.into()),
        (b"F\x3f\x80\0\0", 1.0.into()),
        (b"F\x7f\xf8\0\0", f64::NAN.into()),
        (b"{1\"b2+1\"a1+}", both.clone().into()),
        (b"{1\"a7+1\"a1+1\"b2+}", both.into()),
        (b"#1+$", vec![1_u64.into()].into()),
        (b" [ 1+\n2+ ]", vec![1_u64.into(), 2_u64.into()].into()),
    ];
    // Of a locator's hints, those that nobody can use are left out.
    let hints = b"<15'ocapn-sturdyref<10'ocapn-peer1't1\"d{1\"pt1\"p1\"71\"qt}>1:s>";
    let Ok(Passable::Sturdyref(sturdyref)) = read(hints, Mode::Lenient) else {
        panic!("no sturdyref");
    };
    let hints: Vec<_> = sturdyref.peer.hints.into_iter().collect();
    assert_eq!(hints, [("p".to_owned(), "7".to_owned())]);
    for (wire, value) in cases {
        let name = String::from_utf8_lossy(wire).into_owned();
        assert_eq!(read(wire, Mode::Lenient), Ok(value), "{name}");
        assert!(read(wire, Mode::Strict).is_err(), "{name}");
    }
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    use SyrupErrorKind as Kind;
    let cases: Vec<(&[u8], Kind, usize)> = vec![
        (b"", Kind::End, 0),
        (b"[1+", Kind::End, 3),
        (b"5\"abc", Kind::End, 5),
        (b"1+2+", Kind::Trailing, 2),
        (b"x", Kind::Byte, 0),
        (b"[1+}", Kind::Byte, 3),
        (b"]", Kind::Byte, 0),
        (b"12x", Kind::Byte, 2),
        (b"[01+]", Kind::Canonical, 1),
        (b"[0-]", Kind::Canonical, 1),
        (b"{1\"b1+1\"a1+}", Kind::Canonical, 6),
        (b"{1\"a1+1\"a1+}", Kind::Canonical, 6),
        (b"{1'a1+}", Kind::Kind, 1),
        (b"{1\"a}", Kind::Byte, 4),
        (b"[2\"\xff\xfe]", Kind::Utf8, 1),
        (b"<>", Kind::Byte, 1),
        (b"99999999999999999999999:", Kind::Size, 0),
        (b"99999999999:", Kind::Size, 0),
    ];
    for (wire, kind, offset) in cases {
        let name = String::from_utf8_lossy(wire).into_owned();
        assert_eq!(
            read(wire, Mode::Strict),
            Err(SyrupError { offset, kind }),
            "{name}"
        );
    }
    let limits = Limits {
        size_max: 1 << 20,
        depth_max: 8,
        values_max: 100,
    };
    let check = |wire: Vec<u8>, kind| {
        assert_eq!(
            decode(&wire.into(), limits, Mode::Strict).map_err(|e| e.kind),
            Err(kind)
        );
    };
    check(vec![b'['; 1_000_000], Kind::Depth);
    check([&b"["[..], &b"t".repeat(1000), b"]"].concat(), Kind::Count);
    check([&b"2000000:"[..], &[0; 2_000_000]].concat(), Kind::Size);
    check([&b"1".repeat(100_000)[..], b"+"].concat(), Kind::Number);
}

/// One pass over what is right must see the same limits as the scanner does.
#[test]
fn limits_are_met_exactly() {
    use SyrupErrorKind as Kind;
    for (text, depth, values) in [
        ("[[t]]", 2, 3),
        ("<1'x[1+2+]{1\"a3+}>", 2, 8),
        ("<15'ocapn-sturdyref<10'ocapn-peer1'm1\"af>0:>", 2, 8),
        ("<<1'xt>t>", 2, 5),
    ] {
        let bytes = Bytes::from(text);
        let decode = |depth_max, values_max, size_max| {
            let limits = Limits {
                depth_max,
                values_max,
                size_max,
            };
            let scanned = Scanner::new(limits, Mode::Strict).scan(&bytes).map(|_| ());
            let decoded = decode(&bytes, limits, Mode::Strict).map(|_| ());
            assert_eq!(decoded, scanned, "{text}");
            decoded.map_err(|error| error.kind)
        };
        let size = text.len();
        assert_eq!(decode(depth, values, size), Ok(()), "{text}");
        assert_eq!(decode(depth - 1, values, size), Err(Kind::Depth), "{text}");
        assert_eq!(decode(depth, values - 1, size), Err(Kind::Count), "{text}");
        assert_eq!(decode(depth, values, size - 1), Err(Kind::Size), "{text}");
    }
    for wrong in ["[1+}", "<1'x]", "{1\"a1+>", "[<1'x]>"] {
        let read = decode(&Bytes::from(wrong), Limits::default(), Mode::Strict);
        assert_eq!(read.unwrap_err().kind, Kind::Byte, "{wrong}");
    }
    let deep = [b"[<1'x".repeat(150), b"f".to_vec(), b">]".repeat(150)].concat();
    let limits = |depth_max| Limits {
        depth_max,
        ..Limits::default()
    };
    let read = |depth| decode(&Bytes::from(deep.clone()), limits(depth), Mode::Strict);
    assert!(read(300).is_ok());
    assert_eq!(read(299).unwrap_err().kind, Kind::Depth);
    let mut wrong = deep.clone();
    let end = wrong.len() - 2;
    wrong.swap(end, end + 1);
    let read = decode(&Bytes::from(wrong), limits(300), Mode::Strict);
    assert_eq!(read.unwrap_err().kind, Kind::Byte);
}

/// A value that is dropped, compared or printed must fit the stack, whoever chose the limits.
#[test]
fn no_limits_let_a_value_grow_deeper_than_any_stack() {
    let limits = Limits {
        depth_max: usize::MAX,
        ..Limits::default()
    };
    let nested = |depth| Bytes::from([b"[".repeat(depth), b"]".repeat(depth)].concat());
    for mode in [Mode::Strict, Mode::Lenient] {
        let deepest = decode(&nested(DECODE_DEPTH_MAX), limits, mode).expect("it is allowed");
        assert_eq!(deepest, deepest.clone());
        assert!(format!("{deepest:?}").len() > DECODE_DEPTH_MAX);
        for depth in [400_000, DECODE_DEPTH_MAX + 1] {
            let error = decode(&nested(depth), limits, mode).map(drop).unwrap_err();
            assert_eq!(error.kind, SyrupErrorKind::Depth);
        }
    }
}

#[test]
fn a_record_made_by_hand_does_not_pass_for_a_reference() {
    let forged = Opaque::new(Symbol::new("desc:export"), [0_u64.into()]);
    assert_eq!(encode(&Passable::Opaque(forged)), None);
}

fn passable() -> impl Strategy<Value = Passable> {
    let leaf = prop_oneof![
        Just(Passable::Undefined),
        Just(Passable::Null),
        any::<bool>().prop_map(Passable::from),
        any::<i64>().prop_map(Passable::from),
        (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(a, b, negative)| {
            let n = BigInt::from(a) * b;
            Passable::from(if negative { -n } else { n })
        }),
        any::<f64>().prop_map(|x| Passable::from(if x.is_nan() { f64::NAN } else { x })),
        ".{0,12}".prop_map(Passable::from),
        "[a-z]{0,12}".prop_map(|text| Passable::symbol(&text)),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(Passable::bytes),
        ("[a-z]{1,9}", prop::collection::vec(any::<u8>(), 0..9)).prop_map(|(name, swiss)| {
            let peer = PeerLocator::new("t", name.clone()).with_hint(name, "h");
            Sturdyref {
                peer,
                swissnum: Swissnum::new(swiss),
            }
            .into()
        }),
    ];
    leaf.prop_recursive(5, 60, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Passable::from),
            prop::collection::vec(("[a-z]{0,12}", inner.clone()), 0..6)
                .prop_map(|entries| Passable::Struct(entries.into_iter().collect())),
            ("[a-z]{0,5}", inner.clone()).prop_map(|(tag, value)| {
                Passable::Tagged(Box::new(Tagged {
                    tag: Symbol::new(&tag),
                    value,
                }))
            }),
            prop::collection::vec(inner, 0..4)
                .prop_map(|fields| { Passable::Opaque(Opaque::new(Symbol::new("other"), fields)) }),
        ]
    })
}

/// Scans `wire` in pieces cut as `cuts` says and returns the ends of the values found.
fn scan_in_pieces(wire: &[u8], cuts: &[usize], mode: Mode) -> Result<Vec<usize>, SyrupError> {
    let mut scanner = Scanner::new(Limits::default(), mode);
    let mut cuts = cuts.iter().cycle();
    let (mut start, mut have, mut ends) = (0, 0, Vec::new());
    while have < wire.len() {
        have = (have + (*cuts.next().unwrap_or(&1)).max(1)).min(wire.len());
        while let Some(length) = scanner.scan(&wire[start..have])? {
            start += length;
            ends.push(start);
        }
    }
    Ok(ends)
}

proptest! {
    #[test]
    fn values_round_trip_and_are_canonical(value in passable()) {
        let wire = encode(&value).unwrap();
        for mode in [Mode::Strict, Mode::Lenient] {
            let back = decode(&wire, Limits::default(), mode).unwrap();
            prop_assert_eq!(&back, &value);
            prop_assert_eq!(encode(&back).unwrap(), wire.clone());
        }
    }

    #[test]
    fn pieces_read_as_the_whole(
        values in prop::collection::vec(passable(), 1..4),
        cuts in prop::collection::vec(1_usize..40, 1..8),
    ) {
        let wires: Vec<_> = values.iter().map(|value| encode(value).unwrap()).collect();
        let whole = wires.concat();
        let expected: Vec<_> = wires.iter().scan(0, |end, wire| {
            *end += wire.len();
            Some(*end)
        }).collect();
        for cuts in [&[1][..], &cuts, &[whole.len()]] {
            prop_assert_eq!(scan_in_pieces(&whole, cuts, Mode::Strict), Ok(expected.clone()));
        }
    }

    /// Damage is told or leads to another value, the same for every cut; what strict accepts is
    /// canonical, and lenient reads the same.
    #[test]
    fn damaged_input_never_panics(
        value in passable(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3), 1..6),
    ) {
        let mut wire = encode(&value).unwrap().to_vec();
        for (at, byte, what) in edits {
            let at = at.index(wire.len() + 1);
            match what {
                0 => wire.insert(at, byte),
                1 if at < wire.len() => wire[at] = byte,
                _ => wire.truncate(at),
            }
        }
        let wire = Bytes::from(wire);
        let strict = decode(&wire, Limits::default(), Mode::Strict);
        let lenient = decode(&wire, Limits::default(), Mode::Lenient);
        if let Ok(value) = &strict {
            let again = encode(value);
            prop_assert_eq!(again.as_ref(), Some(&wire));
            prop_assert_eq!(lenient.as_ref(), Ok(value));
        }
        for mode in [Mode::Strict, Mode::Lenient] {
            let by_one = scan_in_pieces(&wire, &[1], mode);
            let at_once = scan_in_pieces(&wire, &[wire.len()], mode);
            prop_assert_eq!(by_one.map_err(|e| e.kind), at_once.map_err(|e| e.kind));
        }
    }
}

/// A loop of mutations over a corpus that grows by what was accepted; bounded, and repeatable.
#[test]
fn mutations_of_accepted_input_never_panic() {
    const ROUNDS: usize = 30_000;
    const CORPUS_MAX: usize = 500;
    const PIECES: [&[u8]; 12] = [
        b"[", b"]", b"{", b"}", b"<", b">", b"1\"a", b"9", b"0", b"+", b"1'x", b"t",
    ];
    let mut corpus: Vec<Vec<u8>> = vec![
        b"<10'op:deliver<11'desc:export0+>[5'fetch3:abc]0+<18'desc:import-object1+>>".to_vec(),
        b"{1\"a[1+2-D12345678]2\"bb<4'null>}".to_vec(),
        b"<15'ocapn-sturdyref<10'ocapn-peer1't1\"d{4\"host1\"h}>2:ss>".to_vec(),
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below.max(1) as u64) as usize
    };
    let mut accepted = 0;
    for _ in 0..ROUNDS {
        let mut input = corpus[random(corpus.len())].clone();
        for _ in 0..=random(4) {
            let at = random(input.len() + 1);
            match random(4) {
                0 => drop(input.splice(at..at, PIECES[random(PIECES.len())].iter().copied())),
                1 if at < input.len() => input[at] = random(256) as u8,
                2 if at < input.len() => drop(input.remove(at)),
                _ => {
                    let other = &corpus[random(corpus.len())];
                    let from = random(other.len());
                    let to = from + random(other.len() - from + 1);
                    input.splice(at..at, other[from..to].iter().copied());
                }
            }
        }
        input.truncate(4_000);
        let bytes = Bytes::from(input.clone());
        let lenient = decode(&bytes, Limits::default(), Mode::Lenient);
        if let Ok(value) = decode(&bytes, Limits::default(), Mode::Strict) {
            accepted += 1;
            if let Some(again) = encode(&value) {
                assert_eq!(again, bytes);
            }
            assert_eq!(lenient, Ok(value));
            if corpus.len() < CORPUS_MAX {
                corpus.push(input);
            }
        }
    }
    assert!(accepted > 100, "the mutations reach valid input");
}

/// Whoever sets no limit is not led astray by lengths that no memory has.
#[test]
fn lengths_beyond_all_memory_are_waited_for() {
    let unlimited = Limits {
        size_max: usize::MAX,
        depth_max: usize::MAX,
        values_max: usize::MAX,
    };
    for start in [
        "18446744073709551595:",
        "18446744073709551615\"",
        "99999999999999999999999'",
    ] {
        let bytes = Bytes::from_static(start.as_bytes());
        for mode in [Mode::Strict, Mode::Lenient] {
            assert_eq!(
                Scanner::new(unlimited, mode).scan(&bytes),
                Ok(None),
                "{start}"
            );
            assert!(decode(&bytes, unlimited, mode).is_err(), "{start}");
        }
    }
}
