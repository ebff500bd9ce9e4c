// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/zeebo/blake3"
	"github.com/zeebo/xxh3"
)

// This is a second reader of stores in a directory, written from docs/format.md
// alone: it has nothing from this project's packages. It reads a checkpoint whole
// and checks all that the page says of it.

const pageSize = 4096

// secondReader reads the store in a directory.
type secondReader struct {
	dir     string
	keys    map[string][]byte // master keys by id; nil: nothing is sealed
	firstID string            // the key that seals
}

// checkpointRead is a checkpoint as the second reader finds it.
type checkpointRead struct {
	manifest      manifestRead
	files         [3][]byte // state, meta, pages
	ranges        [][3]uint64
	engine, image []byte
	hot           []uint64 // segments in the order of first reads
}

type objectRead struct {
	Key    string `json:"key"`
	Size   int64  `json:"size"`
	Blake3 string `json:"blake3"`
}

type fileRead struct {
	Size  int64        `json:"size"`
	Parts []objectRead `json:"parts"`
}

type manifestRead struct {
	Format     string     `json:"format"`
	Version    int        `json:"version"`
	Checkpoint string     `json:"checkpoint"`
	Org        string     `json:"org"`
	Parent     string     `json:"parent"`
	Build      string     `json:"build"`
	ImageHash  string     `json:"imageHash"`
	SizeBytes  int64      `json:"sizeBytes"`
	Table      objectRead `json:"table"`
	Hashes     objectRead `json:"hashes"`
	Engine     *fileRead  `json:"engine"`
	Image      *fileRead  `json:"image"`
	Hot        string     `json:"hot"`
}

// openSecond opens a store; keyFile is "" for one without keys.
func openSecond(dir, keyFile string) (*secondReader, error) {
	r := &secondReader{dir: dir}
	if keyFile == "" {
		return r, nil
	}
	text, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, err
	}
	r.keys = map[string][]byte{}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if r.keys[fields[0]], err = base64.StdEncoding.DecodeString(fields[1]); err != nil {
			return nil, err
		}
		if r.firstID == "" {
			r.firstID = fields[0]
		}
	}
	return r, nil
}

// list gives the ids of the objects of the checkpoints by the ids that users see.
func (r *secondReader) list() (map[string]string, error) {
	entries, err := os.ReadDir(filepath.Join(r.dir, "ckpt"))
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for _, e := range entries {
		m, err := r.manifest(e.Name())
		if errors.Is(err, errNoCheckpoint) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.Name(), err)
		}
		found[m.Checkpoint] = e.Name()
	}
	return found, nil
}

var errNoCheckpoint = errors.New("the object is no checkpoint")

// manifest reads the object of a checkpoint.
func (r *secondReader) manifest(id string) (*manifestRead, error) {
	b, err := os.ReadFile(filepath.Join(r.dir, "ckpt", id))
	if err != nil {
		return nil, err
	}
	line, payload, _ := bytes.Cut(b, []byte("\n"))
	var header struct {
		Version int
		State   string
		Payload int
		Sum     string
	}
	if err := json.Unmarshal(line, &header); err != nil {
		return nil, err
	}
	open := bytes.Replace(line, []byte(`"sum":"`+header.Sum+`"`), []byte(`"sum":""`), 1)
	switch {
	case header.Version != 1:
		return nil, fmt.Errorf("a header of version %d", header.Version)
	case header.Payload != len(payload) || header.Sum != blake3Hex([]byte(id), open, payload):
		return nil, errors.New("the header does not have its sum")
	case header.State != "committed":
		return nil, errNoCheckpoint
	}
	if payload, err = r.unseal(payload, "ckpt/"+id, 0); err != nil {
		return nil, err
	}
	at := bytes.LastIndex(payload, []byte("\nblake3:"))
	if at < 0 || string(payload[at:]) != "\nblake3:"+blake3Hex(payload[:at])+"\n" {
		return nil, errors.New("a manifest without its hash")
	}
	m := new(manifestRead)
	if err := json.Unmarshal(payload[:at], m); err != nil {
		return nil, err
	}
	if m.Format != "opencomputer-checkpoint" || m.Version != 2 {
		return nil, fmt.Errorf("format %q, version %d", m.Format, m.Version)
	}
	return m, nil
}

// read reads all of a checkpoint.
func (r *secondReader) read(id string) (*checkpointRead, error) {
	m, err := r.manifest(id)
	if err != nil {
		return nil, err
	}
	c := &checkpointRead{manifest: *m}
	raw, err := r.object(m.Table)
	if err != nil {
		return nil, err
	}
	if raw, err = unzstd(raw); err != nil {
		return nil, err
	}
	if err := r.table(raw, c); err != nil {
		return nil, fmt.Errorf("the table: %w", err)
	}
	if err := r.hashes(m.Hashes, c.files[2]); err != nil {
		return nil, err
	}
	if c.engine, err = r.file(m.Engine, m.Build); err != nil {
		return nil, err
	}
	c.image, err = r.file(m.Image, m.ImageHash)
	return c, err
}

// segmentRead is a segment of a table.
type segmentRead struct {
	pack                       string
	offset, size, first, pages uint64
	codec                      uint64
	sum                        []byte
	content                    []byte // nil until it is needed
}

// table reads the files that a table tells of.
func (r *secondReader) table(raw []byte, c *checkpointRead) error {
	p := &parser{b: raw}
	if string(p.bytes(8)) != "OCTABL2\n" {
		return errors.New("another magic")
	}
	var packs []string
	for range p.varint() {
		packs = append(packs, string(p.bytes(p.varint())))
	}
	var segments []*segmentRead
	for range p.varint() {
		segments = append(segments, &segmentRead{
			pack: packs[p.varint()], offset: p.varint(), size: p.varint(), first: p.varint(), pages: p.varint(), codec: p.varint(), sum: p.bytes(32),
		})
	}
	if n := p.varint(); n != 3 {
		return fmt.Errorf("%d files", n)
	}
	for i := range c.files {
		size := p.varint()
		reference := int64(0)
		for range p.varint() {
			pages := p.varint()
			reference += p.svarint()
			b, err := r.run(segments, reference, p.varint(), pages)
			if err != nil {
				return err
			}
			c.files[i] = append(c.files[i], b...)
		}
		if pages := (size + pageSize - 1) / pageSize; uint64(len(c.files[i])) != pages*pageSize {
			return fmt.Errorf("file %d has %d bytes instead of %d pages", i, len(c.files[i]), pages)
		}
		if len(bytes.Trim(c.files[i][size:], "\x00")) > 0 {
			return fmt.Errorf("file %d is not filled up with zeros", i)
		}
		c.files[i] = c.files[i][:size]
	}
	total := uint64(0)
	for range p.varint() {
		g := [3]uint64{p.varint(), p.varint(), p.varint()}
		c.ranges = append(c.ranges, g)
		total += g[2]
	}
	if total != uint64(len(c.files[2])) || int64(len(c.files[0])+len(c.files[1])+len(c.files[2])) != c.manifest.SizeBytes {
		return errors.New("sizes that do not add up")
	}
	if p.err == nil && len(p.b) > 0 {
		p.err = errors.New("more behind it")
	}
	var err error
	if c.hot, err = r.firstReads(c.manifest.Hot, uint64(len(segments))); err != nil {
		return err
	}
	indexes := map[string]bool{}
	for _, s := range segments {
		if !indexes[s.pack] {
			indexes[s.pack] = true
			if err := r.index(s.pack, segments, c.manifest.Org); err != nil {
				return fmt.Errorf("%s: %w", s.pack, err)
			}
		}
	}
	return p.err
}

// run reads pages from a slot of a segment on.
func (r *secondReader) run(segments []*segmentRead, reference int64, slot, pages uint64) ([]byte, error) {
	if reference == 0 {
		return make([]byte, pages*pageSize), nil
	}
	var out []byte
	for i := reference - 1; pages > 0; i++ {
		if err := r.segment(segments[i]); err != nil {
			return nil, err
		}
		n := min(pages, segments[i].pages-slot)
		out = append(out, segments[i].content[slot*pageSize:][:n*pageSize]...)
		pages, slot = pages-n, 0
	}
	return out, nil
}

// segment reads the pages of a segment.
func (r *secondReader) segment(s *segmentRead) error {
	if s.content != nil {
		return nil
	}
	pack, err := os.ReadFile(filepath.Join(r.dir, s.pack))
	if err != nil {
		return err
	}
	stored := pack[s.offset:][:s.size]
	if sum := blake3.Sum256(stored); !bytes.Equal(sum[:], s.sum) {
		return fmt.Errorf("the segment at %d of %s has another hash", s.offset, s.pack)
	}
	b, err := r.unseal(stored, s.pack, s.first)
	if err == nil && s.codec == 1 {
		b, err = unzstd(b)
	}
	if err == nil && uint64(len(b)) != s.pages*pageSize {
		err = fmt.Errorf("the segment at %d of %s has %d bytes", s.offset, s.pack, len(b))
	}
	s.content = b
	return err
}

// index reads the index of a pack, and compares it with the segments of the pack
// that a table names, and the identities in it with the pages.
func (r *secondReader) index(key string, segments []*segmentRead, org string) error {
	pack, err := os.ReadFile(filepath.Join(r.dir, key))
	if err != nil {
		return err
	}
	body, isPack := bytes.CutPrefix(pack, []byte("OCPACK2\n"))
	body, ends := bytes.CutSuffix(body, []byte("OCPEND2\n"))
	if !isPack || !ends {
		return errors.New("not a pack")
	}
	footer := body[len(body)-36:]
	size := int(binary.LittleEndian.Uint32(footer))
	stored := body[len(body)-36-size : len(body)-36]
	if sum := blake3.Sum256(stored); !bytes.Equal(sum[:], footer[4:]) {
		return errors.New("the index has another hash")
	}
	raw, err := r.unseal(stored, key, 1<<64-1)
	if err != nil {
		return err
	}
	sealer := r.firstID
	if r.keys != nil {
		sealer = keyID(stored)
	}
	identify, err := r.identity(sealer, org)
	if err != nil {
		return err
	}
	byOffset := map[uint64]*segmentRead{}
	for _, s := range segments {
		if s.pack == key {
			byOffset[s.offset] = s
		}
	}
	p := &parser{b: raw}
	offset, first, found := uint64(8), uint64(0), 0
	for len(p.b) > 0 && p.err == nil {
		size, pages := uint64(binary.LittleEndian.Uint32(p.bytes(4))), uint64(binary.LittleEndian.Uint16(p.bytes(2)))
		codec, zero, sum, ids := p.bytes(1)[0], p.bytes(1)[0], p.bytes(32), p.bytes(32*pages)
		if s := byOffset[offset]; s != nil {
			found++
			if s.size != size || s.first != first || s.pages != pages || s.codec != uint64(codec) || zero != 0 || !bytes.Equal(s.sum, sum) {
				return fmt.Errorf("index and table have another segment at %d", offset)
			}
			if err := r.segment(s); err != nil {
				return err
			}
			for i := range pages {
				if !bytes.Equal(identify(s.content[i*pageSize:][:pageSize]), ids[32*i:][:32]) {
					return fmt.Errorf("page %d of the segment at %d has another identity", i, offset)
				}
			}
		}
		offset, first = offset+size, first+pages
	}
	if p.err == nil && (found != len(byOffset) || offset != uint64(8+len(body)-36-len(stored))) {
		return errors.New("the index does not tell of all segments")
	}
	return p.err
}

// identity gives the function that identifies a page of an org in packs that a
// key sealed.
func (r *secondReader) identity(key, org string) (func(page []byte) []byte, error) {
	master := make([]byte, 32)
	if r.keys != nil {
		master = r.keys[key]
	}
	k, err := hkdf.Key(sha256.New, master, nil, "opencomputer seal v1 dedup\x00"+org, 32)
	if err != nil {
		return nil, err
	}
	h, err := blake3.NewKeyed(k)
	return func(page []byte) []byte {
		h.Reset()
		_, _ = h.Write(page) // never fails
		return h.Sum(nil)
	}, err
}

// firstReads reads the list of first reads, of a table of n segments.
func (r *secondReader) firstReads(key string, n uint64) (out []uint64, err error) {
	if key == "" {
		return nil, nil
	}
	b, err := os.ReadFile(filepath.Join(r.dir, key))
	if err == nil {
		b, err = r.unseal(b, key, 0)
	}
	if err != nil || len(b) == 0 {
		return nil, err
	}
	b, ok := bytes.CutPrefix(b, []byte("OCHOTS2\n"))
	p := &parser{b: b}
	for len(p.b) > 0 {
		out = append(out, p.varint())
		ok = ok && out[len(out)-1] < n
	}
	if !ok || p.err != nil {
		return nil, fmt.Errorf("first reads %d of %d segments (%w)", out, n, p.err)
	}
	return out, nil
}

// hashes compares the cheap hashes with the pages.
func (r *secondReader) hashes(o objectRead, pages []byte) error {
	b, err := r.object(o)
	if err != nil {
		return err
	}
	b, ok := bytes.CutPrefix(b, []byte("OCHASH2\n"))
	if !ok {
		return errors.New("no hashes")
	}
	p := &parser{b: b}
	seed := binary.LittleEndian.Uint64(p.bytes(8))
	for len(pages) > 0 {
		page := make([]byte, pageSize)
		pages = pages[copy(page, pages):]
		if len(bytes.Trim(page, "\x00")) > 0 && binary.LittleEndian.Uint64(p.bytes(8)) != xxh3.HashSeed(page, seed) {
			return errors.New("a page has another cheap hash")
		}
	}
	if len(p.b) > 0 {
		return errors.New("more hashes than pages")
	}
	return p.err
}
