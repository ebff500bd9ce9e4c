// SPDX-License-Identifier: Apache-2.0

package refs

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// FuzzDecode finds no body that breaks the decoder, none that is accepted in two
// spellings, and none accepted that this package would not write.
func FuzzDecode(f *testing.F) {
	l := New(nil, Config{})
	now := time.Unix(1_700_000_000, 0)
	for _, o := range []*Object{
		{ID: idB, State: Writing, Expiry: now, Pins: []string{idA}, Packs: []string{"images/x/" + idB + "-0"}},
		{ID: idB, State: Committed, Packs: []string{packA, packB}, Payload: []byte("payload\n")},
		{ID: idB, State: Deleting, Packs: []string{packA}},
		{ID: idB, State: Revoked},
		{ID: idB, State: Reading, Expiry: now, Pins: []string{idA}},
	} {
		o.token = "0123456789abcdef"
		body, err := l.encode(o)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body, false)
		f.Add(bytes.Replace(body, []byte(`"version":1`), []byte(`"version": 1`), 1), true)
	}
	f.Add([]byte("{\"version\":99}\n"), false)
	f.Add([]byte("null\n"), true)
	f.Fuzz(func(t *testing.T, body []byte, seal bool) {
		if seal {
			body = reseal(body)
		}
		o, err := decode(idB, body)
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), idB) {
				t.Errorf("%v", err)
			}
			return
		}
		again, err := l.encode(o)
		if err != nil {
			t.Fatalf("accepted what it would not write: %v", err)
		}
		p, err := decode(idB, again)
		if err != nil || p.State != o.State || !p.Expiry.Equal(o.Expiry) || !slices.Equal(p.Pins, o.Pins) || !slices.Equal(p.Packs, o.Packs) || !bytes.Equal(p.Payload, o.Payload) {
			t.Errorf("%+v became %+v, %v", o, p, err)
		}
	})
}

// reseal puts the right sum on a header, so that fuzzing gets past it.
func reseal(body []byte) []byte {
	line, payload, _ := bytes.Cut(body, []byte("\n"))
	i := bytes.LastIndex(line, []byte(`"sum":"`))
	if i < 0 {
		return body
	}
	open := append(bytes.Clone(line[:i]), `"sum":""}`...)
	return append(append(splice(idB, open, payload), '\n'), payload...)
}
