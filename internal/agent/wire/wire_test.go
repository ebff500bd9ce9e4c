// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"testing"
)

func TestDataRoundTrip(t *testing.T) {
	t.Parallel()
	b := AppendData(nil, 7, 1<<40, []byte("hello"))
	p, err := Split(b)
	if err != nil || p.Type != Data || p.ID != 7 {
		t.Fatalf("Split = %+v, %v", p, err)
	}
	off, got, err := ParseData(p.Payload)
	if err != nil || off != 1<<40 || string(got) != "hello" {
		t.Fatalf("ParseData = %d %q %v", off, got, err)
	}
}

func TestOutputRoundTrip(t *testing.T) {
	t.Parallel()
	b := append(AppendOutputHeader(nil, 9, Stderr, 42), "x"...)
	p, _ := Split(b)
	s, off, got, err := ParseOutput(p.Payload)
	if err != nil || s != Stderr || off != 42 || string(got) != "x" {
		t.Fatalf("ParseOutput = %d %d %q %v", s, off, got, err)
	}
	p, _ = Split(AppendReplayEnd(nil, 1, 5))
	if off, err := ParseReplayEnd(p.Payload); off != 5 || err != nil {
		t.Fatalf("ParseReplayEnd = %d %v", off, err)
	}
	p, _ = Split(AppendCredit(nil, 1, 99))
	if n, err := ParseCredit(p.Payload); n != 99 || err != nil {
		t.Fatalf("ParseCredit = %d %v", n, err)
	}
}

func TestMalformed(t *testing.T) {
	t.Parallel()
	u64 := func(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
	cases := map[string]func() error{
		"short packet":      func() error { _, err := Split([]byte{1, 2, 3, 4}); return err },
		"long packet":       func() error { _, err := Split(make([]byte, MaxPacket+1)); return err },
		"data, no offset":   func() error { _, _, err := ParseData([]byte{1}); return err },
		"data, empty":       func() error { _, _, err := ParseData(u64(1)); return err },
		"data, too long":    func() error { _, _, err := ParseData(make([]byte, 8+MaxChunk+1)); return err },
		"data, negative":    func() error { _, _, err := ParseData(append(u64(math.MaxUint64), 1)); return err },
		"output, stream 3":  func() error { _, _, _, err := ParseOutput(append([]byte{3}, append(u64(0), 1)...)); return err },
		"output, short":     func() error { _, _, _, err := ParseOutput([]byte{1}); return err },
		"credit, short":     func() error { _, err := ParseCredit([]byte{1}); return err },
		"credit, too much":  func() error { _, err := ParseCredit([]byte{0, 0, 255, 0}); return err },
		"replay end, short": func() error { _, err := ParseReplayEnd(nil); return err },
		"not json":          func() error { return Unmarshal([]byte("{"), &ReplyBody{}) },
	}
	for name, f := range cases {
		if err := f(); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Marshal(Reply, 1, strings.Repeat("x", MaxPayload)); err == nil {
		t.Error("oversized message was encoded")
	}
}

func TestFit(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ n, credit, want int }{
		{1, minCost, 1}, {1, minCost - 1, 0}, {1 << 20, 1 << 20, MaxChunk}, {1000, 500, 500}, {10, 0, 0},
	} {
		if got := Fit(c.n, c.credit); got != c.want {
			t.Errorf("Fit(%d, %d) = %d, want %d", c.n, c.credit, got, c.want)
		}
		if Cost(Fit(c.n, c.credit)) > max(c.credit, minCost) {
			t.Errorf("Fit(%d, %d) costs more than the credit", c.n, c.credit)
		}
	}
}

// FuzzDecode feeds every decoder; what is accepted must be within its bounds.
func FuzzDecode(f *testing.F) {
	f.Add(AppendData(nil, 1, 2, []byte("abc")))
	f.Add(append(AppendOutputHeader(nil, 1, Stdout, 3), 'x'))
	f.Add(AppendReplayEnd(nil, 1, 3))
	f.Add(AppendCredit(nil, 1, 3))
	for _, v := range []any{HelloBody{Nonce: "n"}, ReplyBody{Error: &Error{Kind: "k"}}, RequestBody{Op: OpProbe}} {
		b, _ := Marshal(Reply, 1, v)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Split(b)
		if err != nil {
			return
		}
		if off, d, err := ParseData(p.Payload); err == nil {
			if off < 0 || len(d) == 0 || len(d) > MaxChunk {
				t.Fatalf("ParseData accepted %d, %d bytes", off, len(d))
			}
			if !bytes.Equal(AppendData(nil, p.ID, off, d)[HeaderSize:], p.Payload) {
				t.Fatal("Data does not survive a round trip")
			}
		}
		if s, off, d, err := ParseOutput(p.Payload); err == nil && (off < 0 || len(d) == 0 || s > Stderr) {
			t.Fatal("ParseOutput accepted nonsense")
		}
		if n, err := ParseCredit(p.Payload); err == nil && (n < 0 || n > Window) {
			t.Fatal("ParseCredit accepted nonsense")
		}
		_, _ = ParseReplayEnd(p.Payload)
		for _, v := range []any{
			&HelloBody{}, &HelloAckBody{}, &RequestBody{}, &ReplyBody{}, &StartRequest{}, &SessionInfo{}, &AttachArgs{},
			&AttachAccept{}, &Exit{}, &FileInfo{}, &Identity{}, &SignalArgs{}, &ResizeArgs{}, &WriteArgs{}, &StdinResult{},
		} {
			_ = Unmarshal(p.Payload, v)
		}
	})
}
