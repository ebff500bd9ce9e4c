// SPDX-License-Identifier: Apache-2.0

// Package pageset lays out sets of pages for the way between the engine driver
// and its helpers: the base that a capture compares with, and the table of what
// a capture wrote.
//
// Both are protocol between builds, as package wire is: a layout never changes,
// a new one gets a magic of its own. All numbers are little-endian.
//
//	base    "OCBASE1\n", seed u64, number of ranges u64, ranges, one hash u64
//	        for each page of them
//	table   "OCRNGS1\n", ranges: all pages were copied, in order
//	        "OCRNGS2\n", number of ranges u64, ranges, runs of the copied pages
//	range   source u32, offset u64, length u64
//	run     page u64, count u64, at u64
//
// Invariants: decoding never allocates more than a small multiple of its input,
// accepts nothing that encoding would not have made of the same values, and what
// it accepts can be used without further checks. The package knows no store, no
// engine and no file.
package pageset

import (
	"cmp"
	"encoding/binary"
	"errors"
	"slices"

	"github.com/opencomputer/oc/internal/engine"
)

const (
	baseMagic   = "OCBASE1\n"
	fullMagic   = "OCRNGS1\n"
	copiedMagic = "OCRNGS2\n"

	magicBytes = 8
	rangeBytes = 4 + 8 + 8
	runBytes   = 8 + 8 + 8
	hashBytes  = 8

	// most bounds offsets and sizes, in bytes, so that sums of two do not wrap.
	most = 1 << 50
)

var (
	errCut   = errors.New("pageset: the table is cut off")
	errMagic = errors.New("pageset: not a table of this kind")
	errRange = errors.New("pageset: impossible page range")
)

// Pages is the number of pages of a pages file of so many bytes; the last may
// be shorter than the others.
func Pages(size int64) int64 { return (size + engine.PageSize - 1) / engine.PageSize }

// EncodeBase lays out a base.
func EncodeBase(base *engine.Base) []byte {
	b := make([]byte, 0, magicBytes+16+len(base.Ranges)*rangeBytes+len(base.Hashes)*hashBytes)
	b = append(b, baseMagic...)
	b = binary.LittleEndian.AppendUint64(b, base.Seed)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(base.Ranges)))
	b = appendRanges(b, base.Ranges)
	for _, h := range base.Hashes {
		b = binary.LittleEndian.AppendUint64(b, h)
	}
	return b
}

// DecodeBase reads a base. It fails for one that CheckBase refuses.
func DecodeBase(b []byte) (*engine.Base, error) {
	b, err := behind(b, baseMagic)
	if err != nil {
		return nil, err
	}
	if len(b) < 16 {
		return nil, errCut
	}
	base := &engine.Base{Seed: binary.LittleEndian.Uint64(b)}
	n := binary.LittleEndian.Uint64(b[8:])
	if b = b[16:]; n > uint64(len(b)/rangeBytes) {
		return nil, errCut
	}
	base.Ranges = decodeRanges(b[:n*rangeBytes])
	if b = b[n*rangeBytes:]; len(b)%hashBytes != 0 {
		return nil, errCut
	}
	base.Hashes = make([]uint64, len(b)/hashBytes)
	for i := range base.Hashes {
		base.Hashes[i] = binary.LittleEndian.Uint64(b[i*hashBytes:])
	}
	if err := CheckBase(base); err != nil {
		return nil, err
	}
	return base, nil
}

// CheckBase fails for a base that no capture can have left: ranges that are not
// whole pages, but for the end of the last, a page in it twice, or another number
// of hashes than of pages.
func CheckBase(base *engine.Base) error {
	size, err := total(base.Ranges)
	if err != nil {
		return err
	}
	if Pages(size) != int64(len(base.Hashes)) {
		return errors.New("pageset: a base needs one hash for each page")
	}
	for i, r := range base.Ranges {
		if r.Offset > most || r.Offset%engine.PageSize != 0 || r.Length%engine.PageSize != 0 && i < len(base.Ranges)-1 {
			return errRange
		}
	}
	sorted := slices.SortedFunc(slices.Values(base.Ranges), ByIdentity)
	for i := 1; i < len(sorted); i++ {
		if l := sorted[i-1]; l.Source == sorted[i].Source && l.Offset+l.Length > sorted[i].Offset {
			return errors.New("pageset: a base has a page twice")
		}
	}
	return nil
}

// ByIdentity orders ranges by their first page's identity.
func ByIdentity(a, b engine.PageRange) int {
	return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Offset, b.Offset))
}

// EncodeTable lays out what a capture wrote: the ranges of its pages file, and
// the runs that were copied of it; nil runs mean all.
func EncodeTable(rs []engine.PageRange, copied []engine.PageRun) []byte {
	if copied == nil {
		return appendRanges([]byte(fullMagic), rs)
	}
	b := make([]byte, 0, magicBytes+8+len(rs)*rangeBytes+len(copied)*runBytes)
	b = append(b, copiedMagic...)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(rs)))
	b = appendRanges(b, rs)
	for _, r := range copied {
		b = binary.LittleEndian.AppendUint64(b, uint64(r.Page))
		b = binary.LittleEndian.AppendUint64(b, uint64(r.Count))
		b = binary.LittleEndian.AppendUint64(b, uint64(r.At))
	}
	return b
}

// DecodeTable reads what a capture wrote of a pages file of size bytes; copied
// is nil where all of it was copied. The copied pages lie side by side, each at
// a multiple of the page size, from 0 on.
func DecodeTable(b []byte, size int64) (rs []engine.PageRange, copied []engine.PageRun, err error) {
	switch {
	case len(b) >= magicBytes && string(b[:magicBytes]) == copiedMagic:
		b = b[magicBytes:]
		if len(b) < 8 {
			return nil, nil, errCut
		}
		n := binary.LittleEndian.Uint64(b)
		if b = b[8:]; n > uint64(len(b)/rangeBytes) {
			return nil, nil, errCut
		}
		rs = decodeRanges(b[:n*rangeBytes])
		if copied, err = decodeRuns(b[n*rangeBytes:], size); err != nil {
			return nil, nil, err
		}
	default:
		if b, err = behind(b, fullMagic); err != nil {
			return nil, nil, err
		}
		if len(b)%rangeBytes != 0 {
			return nil, nil, errCut
		}
		rs = decodeRanges(b)
	}
	if sum, err := total(rs); err != nil {
		return nil, nil, err
	} else if sum != size {
		return nil, nil, errors.New("pageset: the page identities do not cover the pages file")
	}
	return rs, copied, nil
}

// decodeRuns reads the runs that were copied of a pages file.
func decodeRuns(b []byte, size int64) ([]engine.PageRun, error) {
	if len(b)%runBytes != 0 {
		return nil, errCut
	}
	if size < 0 || size > most {
		return nil, errRange
	}
	pages := Pages(size)
	runs := make([]engine.PageRun, 0, len(b)/runBytes) // not nil: nothing is something else than all
	next := int64(0)
	for ; len(b) > 0; b = b[runBytes:] {
		r := engine.PageRun{
			Page:  int64(binary.LittleEndian.Uint64(b)),
			Count: int64(binary.LittleEndian.Uint64(b[8:])),
			At:    int64(binary.LittleEndian.Uint64(b[16:])),
		}
		if r.Page < next || r.Page > pages || r.Count <= 0 || r.Count > pages-r.Page || r.At < 0 {
			return nil, errors.New("pageset: impossible run of copied pages")
		}
		next = r.Page + r.Count
		runs = append(runs, r)
	}
	at := int64(0)
	for _, r := range slices.SortedFunc(slices.Values(runs), func(a, b engine.PageRun) int { return cmp.Compare(a.At, b.At) }) {
		if r.At != at {
			return nil, errors.New("pageset: copied pages do not lie side by side")
		}
		at += r.Count * engine.PageSize
	}
	return runs, nil
}

// behind gives what follows the magic.
func behind(b []byte, magic string) ([]byte, error) {
	if len(b) < magicBytes || string(b[:magicBytes]) != magic {
		return nil, errMagic
	}
	return b[magicBytes:], nil
}

func appendRanges(b []byte, rs []engine.PageRange) []byte {
	for _, r := range rs {
		b = binary.LittleEndian.AppendUint32(b, r.Source)
		b = binary.LittleEndian.AppendUint64(b, r.Offset)
		b = binary.LittleEndian.AppendUint64(b, r.Length)
	}
	return b
}

// decodeRanges reads ranges of a length that was checked.
func decodeRanges(b []byte) []engine.PageRange {
	rs := make([]engine.PageRange, 0, len(b)/rangeBytes)
	for ; len(b) > 0; b = b[rangeBytes:] {
		rs = append(rs, engine.PageRange{
			Source: binary.LittleEndian.Uint32(b),
			Offset: binary.LittleEndian.Uint64(b[4:]),
			Length: binary.LittleEndian.Uint64(b[12:]),
		})
	}
	return rs
}

// total adds up the lengths of ranges.
func total(rs []engine.PageRange) (int64, error) {
	var sum uint64
	for _, r := range rs {
		if r.Length == 0 || r.Length > most || sum+r.Length > most {
			return 0, errRange
		}
		sum += r.Length
	}
	return int64(sum), nil
}
