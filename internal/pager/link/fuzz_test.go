// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"errors"
	"testing"

	"github.com/opencomputer/oc/internal/fault"
)

// FuzzDecode: what is understood is what would have been sent.
func FuzzDecode(f *testing.F) {
	f.Add(greeting{version: 1}.encode())
	f.Add(hello{version: 1, slots: 16, slotBytes: 1 << 20, sizes: [fileCount]int64{1, 2, 3}}.encode())
	f.Add(request{file: 1, slot: 2, length: 3, id: 4, offset: 5}.encode())
	f.Add(reply{id: 1, n: 2}.encode())
	f.Add(reply{id: 1, err: fault.Wrap(fault.NotFound, errors.New("cause"), "message").WithHint("hint")}.encode())
	f.Add(encodeRefusal(errors.New("why")))
	f.Fuzz(func(t *testing.T, b []byte) {
		same := func(what string, again []byte) {
			if !bytes.Equal(again, b) {
				t.Errorf("%s: %x is read from %x", what, again, b)
			}
		}
		understood := 0
		if g, err := decodeGreeting(b); err == nil {
			understood++
			same("greeting", g.encode())
		}
		if h, err := decodeHello(b); err == nil {
			understood++
			same("hello", h.encode())
		}
		if r, err := decodeRequest(b); err == nil {
			understood++
			same("request", r.encode())
		}
		if r, err := decodeReply(b); err == nil {
			understood++
			if r.err == nil {
				same("answer", r.encode())
			} else if again, err := decodeReply(r.encode()); err != nil || again.id != r.id || again.err == nil {
				t.Errorf("failure: %v, then %v, %v", r, again, err)
			}
		}
		if why, ok := decodeRefusal(b); ok {
			understood++
			if _, ok := decodeRefusal(encodeRefusal(why)); !ok {
				t.Errorf("refusal: %v", why)
			}
		}
		if understood > 1 {
			t.Errorf("%x is understood in %d ways", b, understood)
		}
	})
}

// split cuts an input into packets, each with its length before it.
func split(b []byte) (packets [][]byte) {
	for len(b) > 0 {
		n := min(int(b[0])+1, len(b)-1)
		if n > 0 { // an empty packet is the end
			packets = append(packets, b[1:1+n])
		}
		b = b[1+n:]
	}
	return packets
}

func joined(packets ...[]byte) (b []byte) {
	for _, p := range packets {
		b = append(append(b, byte(len(p)-1)), p...)
	}
	return b
}

// FuzzServe: no helper can bring the pager down, or keep it.
func FuzzServe(f *testing.F) {
	g := greeting{version: 1}.encode()
	f.Add(joined(g, request{length: 10, id: 1}.encode(), request{length: 10, id: 1}.encode(), request{file: 2, slot: 15, length: 1 << 20, id: 3}.encode()))
	f.Add(joined(g, request{file: 9, length: 10, id: 1}.encode(), []byte("nonsense")))
	f.Add(joined([]byte("nonsense"), g))
	from := sources(random(100), nil, random(2<<20))
	f.Fuzz(func(t *testing.T, b []byte) {
		conn, end := serving(t, from)
		c, err := packets(conn)
		if err != nil {
			t.Fatal(err)
		}
		go func() { // beside the reading: who does not read is not read from
			for _, p := range split(b) {
				if _, err := c.Write(p); err != nil {
					break // it has ended
				}
			}
			_ = c.CloseWrite()
		}()
		for p := make([]byte, maxPacket+1); ; {
			n, err := c.Read(p)
			if err != nil {
				break
			}
			_, hello := decodeHello(p[:n])
			_, reply := decodeReply(p[:n])
			_, refusal := decodeRefusal(p[:n])
			if hello != nil && reply != nil && !refusal {
				t.Errorf("the pager says %x", p[:n])
			}
		}
		c.Close()
		if err := <-end; err != nil && !errors.Is(err, errPacket) {
			t.Error(err)
		}
	})
}

// FuzzClient: no pager can bring the helper down, or have it take what it did
// not ask for.
func FuzzClient(f *testing.F) {
	f.Add(joined(reply{id: 1, n: 10}.encode()))
	f.Add(joined(reply{id: 1, err: errors.New("why")}.encode(), reply{id: 2, n: 10}.encode()))
	f.Add(joined(reply{id: 1, n: 11}.encode()))
	f.Add(joined(encodeRefusal(errors.New("why"))))
	f.Fuzz(func(t *testing.T, b []byte) {
		conn, theirs := pair(t)
		other, err := packets(theirs)
		if err != nil {
			t.Fatal(err)
		}
		c := dialFake(t, conn, other, 1<<20)
		errs := make(chan error, 1)
		go func() {
			p := make([]byte, 10)
			n, err := c.Pages().ReadAt(p, 5)
			if err == nil && n != len(p) {
				err = errors.New("part of it was read without an error")
				t.Error(err)
			}
			errs <- err
		}()
		if _, err := other.Read(make([]byte, maxPacket)); err != nil { // the request
			t.Fatal(err)
		}
		for _, p := range split(b) {
			if _, err := other.Write(p); err != nil {
				break // the helper has given up
			}
		}
		other.Close()
		if err := <-errs; err != nil && err.Error() == "" {
			t.Error("a failure without a reason")
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}
