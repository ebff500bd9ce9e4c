// SPDX-License-Identifier: Apache-2.0

package format

import (
	"encoding/binary"
	"strings"
)

// hotMagic begins a list of first reads:
//
//	"OCHOTS2\n" { varint number of a segment in the checkpoint's table }
const hotMagic = "OCHOTS2\n"

// EncodeHot encodes numbers of segments, in the order in which a restored sandbox
// reads them first.
func EncodeHot(segments []int) []byte {
	b := []byte(hotMagic)
	for _, s := range segments {
		b = binary.AppendUvarint(b, uint64(s))
	}
	return b
}

// DecodeHot decodes what EncodeHot gives, of a table of n segments; there are at
// most n.
func DecodeHot(b []byte, n int) ([]int, error) {
	rest, ok := strings.CutPrefix(string(b), hotMagic)
	if !ok {
		return nil, malformed("not a list of first reads")
	}
	c := cursor{b: []byte(rest)}
	var out []int
	for len(c.b) > 0 {
		s := c.uint()
		if c.bad || n < 0 || s >= uint64(n) || len(out) == n {
			return nil, malformed("number %d in a list of first reads is %d, of %d segments", len(out), s, n)
		}
		out = append(out, int(s))
	}
	return out, nil
}
