// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"slices"
	"strings"
	"testing"
)

func FuzzDecodeRequest(f *testing.F) {
	for _, r := range []request{{opPut, "a"}, {opGet, "sb-1/agent"}, {opList, ""}, {opList, "x"}, {opDrop, "a"}, {opStop, ""}} {
		f.Add(r.encode(), 0)
		f.Add(r.encode(), 1)
	}
	f.Add([]byte{}, 0)
	f.Add([]byte{2, 'G', 'x'}, 0)
	f.Fuzz(func(t *testing.T, b []byte, files int) {
		r, err := decodeRequest(b, files)
		if err != nil {
			return
		}
		if string(r.encode()) != string(b) {
			t.Fatalf("%q decodes to %+v", b, r)
		}
		if len(r.name) > MaxName || (r.op == opPut) != (files > 0) || files > MaxFiles {
			t.Fatalf("accepted %q with %d descriptors", b, files)
		}
	})
}

func FuzzDecodeReply(f *testing.F) {
	f.Add(reply{}.encode(), "")
	f.Add(reply{payload: encodeNames([]string{"a", "b", "c"})}.encode(), "")
	f.Add(reply{statusFull, "no room"}.encode(), "b")
	f.Add(reply{statusVersion, ""}.encode(), "")
	f.Fuzz(func(t *testing.T, b []byte, after string) {
		r, err := decodeReply(b)
		if err != nil {
			return
		}
		if string(r.encode()) != string(b) {
			t.Fatalf("%q decodes to %+v", b, r)
		}
		names, err := decodeNames(r.payload, after)
		if err != nil {
			return
		}
		if encodeNames(names) != r.payload || !slices.IsSorted(names) || len(names) > 0 && names[0] <= after {
			t.Fatalf("names %q after %q", names, after)
		}
	})
}

func FuzzParseRights(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte(strings.Repeat("\x00", 24)))
	// A header that promises more than there is.
	f.Add([]byte("\xff\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x05\x00\x00\x00"))
	// Half a descriptor.
	f.Add([]byte("\x12\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(_ *testing.T, oob []byte) {
		_, _ = parseRights(oob) // must not panic
	})
}

func TestPageHoldsAtLeastOneName(t *testing.T) {
	t.Parallel()
	longest := strings.Repeat("z", MaxName)
	names := slices.Repeat([]string{longest}, 1000)
	page := strings.Split(encodeNames(names), "\n")
	if len(page) < 1 || len(reply{payload: encodeNames(names)}.encode()) > maxReply {
		t.Fatalf("%d names in a page", len(page))
	}
}
