// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"encoding/hex"
	"slices"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/opencomputer/oc/internal/engine"
)

// FuzzDecodeManifest finds no input that breaks the decoder, and none that is
// taken for a manifest and does not describe the three files plausibly. The
// seal is put on, or nearly nothing would get past it.
func FuzzDecodeManifest(f *testing.F) {
	m := testManifest("cp-1")
	m.Format, m.Version, m.BlockSize = FormatName, FormatVersion, blockSize
	m.Files = []FileInfo{{FileState, 10}, {FileMeta, 0}, {FilePages, blockSize + 1}}
	m.Sums.Size = int64(len(sumsMagic)) + 3*sumBytes
	raw, err := encodeManifest(&m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw, false)
	f.Add(raw[:bytes.LastIndex(raw, []byte(sealLine))], true)
	f.Add([]byte(`{"format":"opencomputer-checkpoint","version":1,"checkpoint":"cp-1"}`), true)
	f.Add([]byte(sealLine), false)
	f.Fuzz(func(t *testing.T, in []byte, seal bool) {
		if seal {
			sum := blake3.Sum256(in)
			in = append(bytes.Clone(in), sealLine+hex.EncodeToString(sum[:])+"\n"...)
		}
		m, err := decodeManifest("cp-1", in)
		if err != nil {
			return
		}
		if m.Checkpoint != "cp-1" || m.Format != FormatName || m.Version != FormatVersion || len(m.Files) != 3 || m.LogicalSize() < 0 {
			t.Errorf("accepted %+v", m)
		}
	})
}

func FuzzDecodeSums(f *testing.F) {
	f.Add(encodeSums([][]blockSum{{sumBlock([]byte("a"))}, nil, {sumBlock([]byte("b")), sumBlock(nil)}}), int64(1), int64(0), int64(blockSize+1))
	f.Add([]byte(sumsMagic), int64(0), int64(0), int64(0))
	f.Add([]byte(sumsMagic), int64(-1), int64(1)<<62, int64(1)<<50)
	f.Fuzz(func(t *testing.T, in []byte, a, b, c int64) {
		sums, err := decodeSums(in, []int64{a, b, c})
		if err != nil {
			return
		}
		if !bytes.Equal(encodeSums(sums), in) {
			t.Error("accepted a table that is not what it decodes to")
		}
	})
}

func FuzzDecodeRanges(f *testing.F) {
	f.Add(encodeRanges([]engine.PageRange{{Source: 1, Offset: 4096, Length: 8192}, {Source: 0, Offset: 0, Length: 4096}}), int64(12288))
	f.Add([]byte(rangesMagic), int64(0))
	f.Add(encodeRanges([]engine.PageRange{{Length: 1 << 63}, {Length: 1 << 63}}), int64(0))
	f.Fuzz(func(t *testing.T, in []byte, size int64) {
		rs, err := decodeRanges(in, size)
		if err != nil {
			return
		}
		var total int64
		for _, r := range rs {
			total += int64(r.Length)
		}
		if total != size || !bytes.Equal(encodeRanges(rs), in) || slices.ContainsFunc(rs, func(r engine.PageRange) bool { return r.Length == 0 }) {
			t.Errorf("accepted ranges of %d bytes for %d", total, size)
		}
	})
}
