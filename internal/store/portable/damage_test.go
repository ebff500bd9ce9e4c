// SPDX-License-Identifier: Apache-2.0

package portable

import (
	"bytes"
	"encoding/binary"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
)

// refuse reads b, which must be refused as Invalid with the words in the
// message, and leave nothing.
func refuse(t *testing.T, dir string, b []byte, words ...string) {
	t.Helper()
	r, err := Read(t.Context(), bytes.NewReader(b), dir, Limits{Bytes: 1 << 20}, nil)
	if err == nil {
		r.Close()
		t.Errorf("accepted, want %q", words)
		return
	}
	text := fault.As(err).Message
	if !fault.Is(err, fault.Invalid) || !slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) }) {
		t.Errorf("%v, want %q", err, words)
	}
}

func TestEveryTruncationIsAnError(t *testing.T) {
	t.Parallel()
	b, dir := packed(t, small()), t.TempDir()
	for n := range b {
		refuse(t, dir, b[:n], "ends early: it was not copied completely")
	}
	checkNothingLeft(t, dir)
}

func TestEveryFlippedByteIsAnError(t *testing.T) {
	t.Parallel()
	b, dir := packed(t, small()), t.TempDir()
	for i := range b {
		for _, x := range []byte{1, 0x80, 0xff} {
			c := bytes.Clone(b)
			c[i] ^= x
			refuse(t, dir, c, "not a checkpoint file", "format version", "damaged", "ends early")
		}
	}
	checkNothingLeft(t, dir)
}

// seal makes a file with a right hash of what the contents are: whatever is
// found wrong in it is found by looking at it.
func seal(contents []byte, frame int) []byte {
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	b := []byte(magic + "\x01\x00\x00\x00")
	for c := range slices.Chunk(contents, frame) {
		z := enc.EncodeAll(c, nil)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(c)))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(z)))
		b = append(b, z...)
	}
	return sealed(append(b, make([]byte, frameHeader)...))
}

func sealed(b []byte) []byte {
	sum := blake3.Sum256(b)
	return append(b, sum[:]...)
}

// plain is the contents of c's file, with the table and the ranges changed.
func plain(t testing.TB, c contents, table, ranges func([]byte) []byte) []byte {
	t.Helper()
	p := c.parcel()
	h, err := p.head()
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for _, part := range []struct {
		write  func(io.Writer) error
		change func([]byte) []byte
	}{{h.writeTable, table}, {h.writeRanges, ranges}} {
		var w bytes.Buffer
		if err := part.write(&w); err != nil {
			t.Fatal(err)
		}
		b := w.Bytes()
		if part.change != nil {
			b = part.change(b)
		}
		out = append(out, sealed(b)...)
	}
	for _, f := range c.files {
		out = append(out, sealed(bytes.Clone(f))...)
	}
	return out
}

func replaceIn(old, to string) func([]byte) []byte {
	return func(b []byte) []byte { return bytes.Replace(b, []byte(old), []byte(to), 1) }
}

func TestHostile(t *testing.T) {
	t.Parallel()
	c, dir := small(), t.TempDir()
	good := seal(plain(t, c, nil, nil), maxFrame)
	r, err := Read(t.Context(), bytes.NewReader(good), dir, Limits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.check(t, r)
	r.Close()
	withRange := func(at, add int) []byte { // one byte of their number and the first of them
		return seal(plain(t, c, nil, func(b []byte) []byte { b[at] += byte(add); return b }), maxFrame)
	}
	size := func(n uint64) string { return "\x05pages" + string(binary.LittleEndian.AppendUint64(nil, n)) }
	bomb := c
	bomb.files[4] = make([]byte, 2<<20)
	bomb.ranges = []engine.PageRange{{Length: 2 << 20}}
	frame := func(raw, packed uint32, data string) []byte {
		b := binary.LittleEndian.AppendUint32([]byte(magic+"\x01\x00\x00\x00"), raw)
		b = append(binary.LittleEndian.AppendUint32(b, packed), data...)
		return sealed(append(b, make([]byte, frameHeader)...))
	}
	huge, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	bombFrame := string(huge.EncodeAll(make([]byte, 64<<20), nil))
	for _, tt := range []struct {
		what string
		file []byte
		want string
	}{
		{"an archive", []byte("PK\x03\x04 and so on and so on"), "not a checkpoint file"},
		{"taken for text", bytes.ReplaceAll(good, []byte("\r\n"), []byte("\n")), "not a checkpoint file"},
		{"trailing data", append(bytes.Clone(good), 0), "follows behind its end"},
		{"twice", append(bytes.Clone(good), good...), "follows behind its end"},
		{"newer", append([]byte(magic+"\x02\x00\x00\x00"), good[12:]...), "format version 2; this release reads up to 1"},
		{"version 0", append([]byte(magic+"\x00\x00\x00\x00"), good[12:]...), "version 0"},
		{"unknown file", seal(plain(t, c, replaceIn("\x05state", "\x05stats"), nil), maxFrame), `"stats" where "state" should be`},
		{"duplicate", seal(plain(t, c, replaceIn("\x05image", "\x05state"), nil), maxFrame), `"state" where "image" should be`},
		{"a path", seal(plain(t, c, replaceIn("\x06engine", "\x06../../"), nil), maxFrame), `"../../" where`},
		{"six files", seal(plain(t, c, replaceIn("\x05\x06engine", "\x06\x06engine"), nil), maxFrame), "6 files instead of 5"},
		{"huge manifest", seal(plain(t, c, func(b []byte) []byte { b[2] = 0x11; return b }, nil), maxFrame), "manifest is said"},
		{"impossible size", seal(plain(t, c, replaceIn(size(3*page), size(1<<63)), nil), maxFrame), "said to have"},
		{"more than the limit", seal(plain(t, c, replaceIn(size(3*page), size(1<<40)), nil), maxFrame), "more than the 1 MiB allowed"},
		{"a bomb", seal(plain(t, bomb, replaceIn(size(2<<20), size(page)), nil), maxFrame), "cover"},
		{"bomb in a frame", frame(maxFrame, uint32(len(bombFrame)), bombFrame), "decompressed"},
		{"large frame", frame(maxFrame+1, 10, "0123456789"), "frame of"},
		{"frame of nothing", frame(0, 10, "0123456789"), "frame of"},
		{"frame without data", frame(10, 0, ""), "frame of"},
		{"packed too large", frame(10, 1<<31, "0123456789"), "frame of"},
		{"empty", sealed(append([]byte(magic+"\x01\x00\x00\x00"), make([]byte, 8)...)), "less in it"},
		{"more contents", seal(append(plain(t, c, nil, nil), 1), 100), "more in it"},
		{"fewer contents", seal(plain(t, c, nil, nil)[:1000], 100), "less in it"},
		{"many ranges", withRange(0, 4), "page identities"},
		{"range of nothing", withRange(16+1, -int(c.ranges[0].Length>>8)), "impossible page range"},
		{"unaligned range", withRange(8, 1), "impossible page range"},
		{"pages not covered", withRange(16+1, 16), "cover"},
		{"changed and sealed", seal(replaceIn("cp-1", "cp-2")(plain(t, c, nil, nil)), maxFrame), `"table" does not match`},
	} {
		t.Run(tt.what, func(t *testing.T) { refuse(t, dir, tt.file, tt.want) })
	}
	checkNothingLeft(t, dir)
	_, err = Read(t.Context(), io.MultiReader(strings.NewReader(magic+"\x02\x00\x00\x00")), dir, Limits{}, nil)
	if fault.As(err).Hint != "upgrade oc" {
		t.Errorf("a newer version: %v", err)
	}
}

// FuzzRead finds nothing that is accepted and was not written; the seal is put
// on, or nearly nothing would get to the end.
func FuzzRead(f *testing.F) {
	b := packed(f, small())
	f.Add(b, false)
	f.Add(b[:len(b)-sumBytes], true)
	f.Add(b[:len(b)/2], false)
	f.Add(b[:len(b)-sumBytes-frameHeader], true)
	flipped := bytes.Clone(b)
	flipped[len(b)/3] ^= 4
	f.Add(flipped, true)
	f.Fuzz(func(t *testing.T, in []byte, reseal bool) {
		if reseal {
			in = sealed(bytes.Clone(in))
		}
		again(t, in)
	})
}

// FuzzContents does the same with what is in the frames.
func FuzzContents(f *testing.F) {
	c := small()
	f.Add(plain(f, c, nil, nil), 100)
	f.Add(plain(f, c, replaceIn("\x05meta", "\x05beta"), nil), 1<<20)
	f.Add(plain(f, c, nil, nil)[:1000], 7)
	f.Fuzz(func(t *testing.T, in []byte, frame int) { again(t, seal(in, 1+int(uint(frame)%maxFrame))) })
}

// again reads a file and, where it is accepted, writes and reads it again.
func again(t *testing.T, in []byte) {
	dir := t.TempDir()
	defer checkNothingLeft(t, dir)
	r, err := Read(t.Context(), bytes.NewReader(in), dir, Limits{Bytes: 4 << 20}, nil)
	if err != nil {
		return
	}
	defer r.Close()
	c := contents{manifest: r.Manifest, ranges: r.Ranges}
	for i, name := range names {
		if c.files[i], err = io.ReadAll(r.Files[name]); err != nil {
			t.Fatal(err)
		}
	}
	second, err := Read(t.Context(), bytes.NewReader(packed(t, c)), dir, Limits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.check(t, second)
	second.Close()
}
