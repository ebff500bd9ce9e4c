// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/store"
)

// writeGolden is for a new version of the format (docs/format.md); what is there
// is never written again.
var writeGolden = flag.String("golden", "", "a `directory`, not there yet, for the stores that TestGoldenAsWrittenNow writes")

// The stores in testdata: as they were first written. They must stay readable
// for ever.
const golden = "testdata/v2"

// goldenCheckpoint is a checkpoint of the stores in testdata.
type goldenCheckpoint struct {
	store  string    // directory
	parent string    // it is based on; "" for one that holds all its pages
	keys   int       // lines of the key file, from the last, when it was written; 0: the store has no keys
	sums   [3]string // SHA-256 of state, meta and pages
	ranges [][3]uint64
	reads  []int64  // pages of the first who restored it; nil: the store is in a directory, and does not keep them
	hot    []uint64 // the segments that these are in
}

var goldens = map[string]goldenCheckpoint{
	"cp-00000001": {store: "clear", sums: firstSums, ranges: firstRanges},
	"cp-00000002": {store: "clear", parent: "cp-00000001", sums: secondSums, ranges: secondRanges},
	"cp-00000003": {store: "sealed", keys: 1, sums: firstSums, ranges: firstRanges},
	"cp-00000004": {store: "sealed", parent: "cp-00000003", keys: 2, sums: secondSums, ranges: secondRanges},
	"cp-00000005": {store: "remote", sums: firstSums, ranges: firstRanges, reads: []int64{75, 0, 74}, hot: []uint64{1, 0}},
	"cp-00000006": {store: "remote-sealed", keys: 2, sums: firstSums, ranges: firstRanges, reads: []int64{75, 0, 74}, hot: []uint64{1, 0}},
}

var (
	firstSums = [3]string{
		"2e93e66a420092bdb4364850c9af84f1e65453f04abba9e6fe0633ae5f37a921",
		"42074029c80209ed97d0a4bacfed67dfb0ae9d973b5e23020272f409ebcca142",
		"89106aae6a7f7a55d7c64f7dfb96c7bdedbded2e0e439fec70a4c1c7a6075ab2",
	}
	secondSums = [3]string{
		"7a646ed2b6542c5def140803e5d433e68808b1778f659ad8bd11651b2aba88c2",
		"810cde2bb08443b0bd1420dff5f5e4e23f53395e26410f9a4f90bbde6a5796e2",
		"585fa4d04d68b448c0e294957a5a62fb45f9fda1197065afe2b3a3295bcd2d10",
	}

	firstRanges  = [][3]uint64{{0, 0, 70 * pageSize}, {0, 100 * pageSize, 4 * pageSize}, {1, 0, 2 * pageSize}}
	secondRanges = [][3]uint64{{0, 0, 72 * pageSize}, {0, 101 * pageSize, 3 * pageSize}, {1, 0, 2 * pageSize}, {2, 0, pageSize}}
)

// A store that was written by an earlier release reads as it did, by the product
// and by a reader that knows docs/format.md alone, and is found sound.
func TestGolden(t *testing.T) {
	t.Parallel()
	checkGolden(t, golden)
}

// What is written now is of the same format as the stores in testdata.
func TestGoldenAsWrittenNow(t *testing.T) {
	t.Parallel()
	dir := *writeGolden
	if dir == "" {
		dir = filepath.Join(t.TempDir(), "golden")
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	keys, err := os.ReadFile(filepath.Join(golden, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "keys"), keys, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(goldens)) {
		putGolden(t, dir, name)
	}
	checkGolden(t, dir)
}

// goldenPage is the content of the page of an identity, of its second version if
// it was written to.
func goldenPage(source, number uint64, written bool) []byte {
	page := make([]byte, pageSize)
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %d %v", source, number, written))
	switch {
	case source == 1: // random
		for i := range pageSize / 32 {
			sum = sha256.Sum256(sum[:])
			copy(page[i*32:], sum[:])
		}
	case number%10 == 7 && !written: // zero
	case number%10 == 8 && !written: // the same as others
		copy(page, bytes.Repeat([]byte("equal"), pageSize/5))
	default:
		copy(page, bytes.Repeat(sum[:16], pageSize/16))
	}
	return page
}

// goldenCapture is what was captured. Of a second checkpoint only what differs
// from the first is copied: two pages that were written to, and those that the
// first does not have.
func goldenCapture(c goldenCheckpoint) *engine.Capture {
	out := &engine.Capture{Close: func() {}}
	var held, all []byte
	for _, r := range c.ranges {
		out.Ranges = append(out.Ranges, engine.PageRange{Source: uint32(r[0]), Offset: r[1], Length: r[2]})
		for n := r[1] / pageSize; n < (r[1]+r[2])/pageSize; n++ {
			written := c.parent != "" && r[0] == 0 && (n == 3 || n == 37)
			page := goldenPage(r[0], n, written)
			if written || c.parent != "" && (r[0] == 2 || r[0] == 0 && (n == 70 || n == 71)) {
				out.Copied = append(out.Copied, engine.PageRun{Page: int64(len(all) / pageSize), Count: 1, At: int64(len(held))})
				held = append(held, page...)
			}
			all = append(all, page...)
		}
	}
	state := bytes.Repeat(fmt.Appendf(nil, "the state of %d ranges, ", len(c.ranges)), 300)
	meta := bytes.Repeat([]byte{1, 2, 3}, len(c.ranges)*100)
	out.State, out.StateSize = bytes.NewReader(state), int64(len(state))
	out.Meta, out.MetaSize = bytes.NewReader(meta), int64(len(meta))
	out.Pages, out.PagesSize = bytes.NewReader(all), int64(len(all))
	if c.parent != "" {
		out.Pages = bytes.NewReader(held)
	}
	return out
}

var goldenEngine, goldenImage = []byte("the binary of the build that wrote it"), []byte("the EROFS image that it runs on")

func putGolden(t *testing.T, dir, name string) {
	t.Helper()
	c := goldens[name]
	where, keys := filepath.Join(dir, c.store), someKeys(t, dir, c.keys)
	open := openGolden
	if c.reads != nil {
		open = func(t *testing.T, dir, keys string) *store.Store { return store.OpenAsRemote(t, dir, keys) }
	}
	s := open(t, where, keys)
	build := filepath.Join(t.TempDir(), "oc")
	if err := os.WriteFile(build, goldenEngine, 0o600); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, goldenImage, 0o600); err != nil {
		t.Fatal(err)
	}
	req := store.PutRequest{
		Manifest: store.Manifest{
			Checkpoint: name, Org: "org-1", Sandbox: "sb-00000001", Name: "golden", Parent: c.parent, CreatedAt: time.Date(2026, 11, 30, 1, 2, 3, 0, time.UTC),
			Requirements: engine.Requirements{Engine: "gvisor test", Arch: "amd64", CPUFeatures: []string{"avx", "sse4_2"}},
			Build:        sha(goldenEngine), ImageHash: sha(goldenImage), TreeHash: sha([]byte("tree")), Agent: 1,
			Shape: engine.Shape{CPUs: 1, MemoryBytes: 1 << 30, DiskBytes: 1 << 30, PidsMax: 100},
		},
		EnginePath: build, ImagePath: image,
	}
	req.Capture = goldenCapture(c)
	if c.parent != "" {
		base, err := s.Image(t.Context(), objectOf(t, s, c.parent))
		if err != nil {
			t.Fatal(err)
		}
		defer base.Close()
		req.Base = base
	}
	id, _, err := s.Put(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if c.reads != nil {
		s.Restore(t, id, c.reads...)
	}
}

func sha(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// someKeys is a key file of the last n keys of the one in testdata, "" of none:
// the first line is the newest key.
func someKeys(t *testing.T, dir string, n int) string {
	t.Helper()
	if n == 0 {
		return ""
	}
	text, err := os.ReadFile(filepath.Join(dir, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(strings.TrimSpace(string(text)), "\n")
	path := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(path, []byte(strings.Join(lines[len(lines)-n:], "")), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func openGolden(t *testing.T, dir, keys string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: dir, KeyFile: keys, State: t.TempDir()}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func objectOf(t *testing.T, s *store.Store, checkpoint string) string {
	t.Helper()
	for id, name := range s.List() {
		if name == checkpoint {
			return id
		}
	}
	t.Fatalf("there is no %s", checkpoint)
	return ""
}

// checkGolden reads the stores in a directory.
func checkGolden(t *testing.T, from string) {
	t.Helper()
	for kind, n := range map[string]struct{ checkpoints, keys int }{
		"clear": {2, 0}, "sealed": {2, 2}, "remote": {1, 0}, "remote-sealed": {1, 2},
	} {
		dir := t.TempDir() // a store is written to when it is opened
		if err := os.CopyFS(dir, os.DirFS(filepath.Join(from, kind))); err != nil {
			t.Fatal(err)
		}
		keys := someKeys(t, from, n.keys)
		s := openGolden(t, dir, keys)
		second, err := openSecond(dir, keys)
		if err != nil {
			t.Fatal(err)
		}
		found, err := second.list()
		if err != nil || len(found) != n.checkpoints {
			t.Fatalf("the second reader finds %v, %v", found, err)
		}
		for name, want := range goldens {
			if want.store != kind {
				continue
			}
			files, ranges := readBoth(t, s, second, name, found[name])
			for i := range files {
				if got := sha(files[i]); got != want.sums[i] {
					t.Errorf("%s: file %d has the SHA-256 %s, want %s", name, i, got, want.sums[i])
				}
			}
			if fmt.Sprint(ranges) != fmt.Sprint(want.ranges) {
				t.Errorf("%s: ranges %v, want %v", name, ranges, want.ranges)
			}
			if hot := s.FirstReads(t, found[name]); !slices.Equal(hot, want.hot) {
				t.Errorf("%s: first reads %v, want %v", name, hot, want.hot)
			}
		}
		r, err := s.Check(t.Context(), true, nil)
		if err != nil || len(r.Problems) > 0 || r.Leftovers > 0 || r.Checkpoints != n.checkpoints {
			t.Errorf("%s: a check finds %+v, %v", kind, r, err)
		}
	}
}

// readBoth reads a checkpoint by the product and by the second reader, and
// demands that they agree.
func readBoth(t *testing.T, s *store.Store, second *secondReader, name, id string) (files [3][]byte, ranges [][3]uint64) {
	t.Helper()
	got, err := second.read(id)
	if err != nil {
		t.Fatalf("%s: the second reader: %v", name, err)
	}
	im, err := s.Image(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	for i, file := range []string{store.FileState, store.FileMeta, store.FilePages} {
		files[i] = make([]byte, im.File(file).Size())
		if n, err := im.File(file).ReadAt(files[i], 0); n != len(files[i]) || err != nil && !errors.Is(err, io.EOF) {
			t.Fatalf("%s of %s: %d bytes, %v", file, name, n, err)
		}
		if !bytes.Equal(files[i], got.files[i]) {
			t.Errorf("%s of %s is another for the second reader", file, name)
		}
	}
	for _, r := range im.Ranges() {
		ranges = append(ranges, [3]uint64{uint64(r.Source), r.Offset, r.Length})
	}
	if fmt.Sprint(ranges) != fmt.Sprint(got.ranges) {
		t.Errorf("ranges of %s are %v, for the second reader %v", name, ranges, got.ranges)
	}
	if m := im.Manifest(); m.Checkpoint != name || got.manifest.Checkpoint != name || m.Parent != got.manifest.Parent {
		t.Errorf("%s is %s with parent %q; for the second reader %s with %q", name, m.Checkpoint, m.Parent, got.manifest.Checkpoint, got.manifest.Parent)
	}
	if hot := s.FirstReads(t, id); !slices.Equal(hot, got.hot) {
		t.Errorf("first reads of %s are %v, for the second reader %v", name, hot, got.hot)
	}
	var kept [2]bytes.Buffer
	if im.Manifest().Engine != nil {
		if err := errors.Join(im.FetchEngine(t.Context(), &kept[0], nil), im.FetchImage(t.Context(), &kept[1], nil)); err != nil {
			t.Error(err)
		}
	}
	if !bytes.Equal(kept[0].Bytes(), got.engine) || !bytes.Equal(kept[1].Bytes(), got.image) {
		t.Errorf("the kept files of %s are others for the second reader", name)
	}
	return files, ranges
}

// A reader that knows docs/format.md alone reads what any chain of checkpoints
// holds, clear and sealed.
func TestSecondReader(t *testing.T) {
	t.Parallel()
	for kind, keys := range map[string]string{"clear": "", "sealed": someKeys(t, golden, 2)} {
		dir := t.TempDir()
		s := store.OpenAsRemote(t, dir, keys)
		want := store.PutChain(t, s, 6)
		second, err := openSecond(dir, keys)
		if err != nil {
			t.Fatal(err)
		}
		found, err := second.list()
		if err != nil || len(found) != len(want) {
			t.Fatalf("%s: the second reader finds %v, %v", kind, found, err)
		}
		for name, c := range want {
			files, ranges := readBoth(t, s, second, name, found[name])
			for i := range files {
				if !bytes.Equal(files[i], c.Files[i]) {
					t.Errorf("%s: file %d of %s is another", kind, i, name)
				}
			}
			if len(ranges) != len(c.Ranges) {
				t.Errorf("%s: %d ranges of %s, want %d", kind, len(ranges), name, len(c.Ranges))
			}
			s.Restore(t, found[name])
			again, err := second.read(found[name])
			if err != nil || len(again.hot) == 0 || !slices.Equal(again.hot, s.FirstReads(t, found[name])) {
				t.Errorf("%s: first reads of %s: %v", kind, name, err)
			}
		}
	}
}

// The second reader, too, believes nothing that has another hash.
func TestSecondReaderFindsDamage(t *testing.T) {
	t.Parallel()
	for name, c := range goldens {
		if c.parent != "" || c.hot != nil { // no hash covers the first reads
			continue
		}
		dir, keys := t.TempDir(), someKeys(t, golden, c.keys)
		if err := os.CopyFS(dir, os.DirFS(filepath.Join(golden, c.store))); err != nil {
			t.Fatal(err)
		}
		second, err := openSecond(dir, keys)
		if err != nil {
			t.Fatal(err)
		}
		id := filepath.Base(oldest(t, filepath.Join(dir, "ckpt")))
		objects, err := filepath.Glob(filepath.Join(dir, "packs", id, "*"))
		if err != nil || len(objects) != 3 {
			t.Fatalf("%s: %q, %v", name, objects, err)
		}
		for _, path := range objects {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for at := 0; at < len(b); at += 1 + len(b)/30 {
				b[at] ^= 1
				if err := os.WriteFile(path, b, 0o600); err != nil {
					t.Fatal(err)
				}
				if _, err := second.read(id); err == nil {
					t.Errorf("%s reads with a wrong byte %d in %s", name, at, path)
				}
				b[at] ^= 1
			}
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := second.read(id); err != nil {
			t.Errorf("%s without a wrong byte: %v", name, err)
		}
	}
}

// oldest is the first path below a directory: ids of objects sort by time.
func oldest(t *testing.T, dir string) string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s: %q, %v", dir, paths, err)
	}
	return paths[0]
}

// later makes a checkpoint one of the next version of the format, or its object
// one of the next version of the protocol.
func later(t *testing.T, path string, header bool) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	line, payload, _ := bytes.Cut(b, []byte("\n"))
	var h struct {
		Payload int    `json:"payload"`
		Sum     string `json:"sum"`
	}
	if err := json.Unmarshal(line, &h); err != nil {
		t.Fatal(err)
	}
	open := bytes.Replace(line, []byte(h.Sum), nil, 1)
	if header {
		open = bytes.Replace(open, []byte(`"version":1`), []byte(`"version":2`), 1)
	} else {
		body := bytes.Replace(payload[:bytes.LastIndex(payload, []byte("\nblake3:"))], []byte(`"version": 2`), []byte(`"version": 3`), 1)
		payload = fmt.Appendf(body, "\nblake3:%s\n", blake3Hex(body))
	}
	sum := blake3Hex([]byte(filepath.Base(path)), open, payload)
	line = bytes.Replace(open, []byte(`"sum":""`), []byte(`"sum":"`+sum+`"`), 1)
	if err := os.WriteFile(path, bytes.Join([][]byte{line, payload}, []byte("\n")), 0o600); err != nil {
		t.Fatal(err)
	}
}

// What a later release wrote is refused with a message that says so and what to
// do, and is no damage; the rest of the store is as usable as before.
func TestLaterVersionIsRefused(t *testing.T) {
	t.Parallel()
	for _, header := range []bool{false, true} {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(filepath.Join(golden, "clear"))); err != nil {
			t.Fatal(err)
		}
		second, err := openSecond(dir, "")
		if err != nil {
			t.Fatal(err)
		}
		found, err := second.list()
		if err != nil {
			t.Fatal(err)
		}
		id := found["cp-00000001"]
		later(t, filepath.Join(dir, "ckpt", id), header)
		if _, err := second.read(id); err == nil || !strings.Contains(err.Error(), "version") {
			t.Errorf("header %v: the second reader: %v", header, err)
		}
		s := openGolden(t, dir, "")
		_, err = s.Image(t.Context(), id)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "version") || fault.As(err).Hint != "upgrade oc" {
			t.Errorf("header %v: %v (%s)", header, err, fault.As(err).Hint)
		}
		r, err := s.Check(t.Context(), true, nil)
		if err != nil || len(r.Damaged()) > 0 || len(r.Problems) != 1 || r.Problems[0].Object != id {
			t.Errorf("header %v: a check finds %+v, %v", header, r, err)
		}
		readBoth(t, s, second, "cp-00000002", found["cp-00000002"])
	}
}
