// SPDX-License-Identifier: Apache-2.0

package buckettest

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Link is what the way to the server is like. The zero value is the plain
// loopback interface.
type Link struct {
	Delay time.Duration // of each request, the time there and back
	Rate  int64         // bytes per second in each direction, of all requests together; 0 is no limit
	Down  bool          // requests wait, and answers do not arrive, until it is up again
}

// Verdict is what a Proxy does with a request.
type Verdict int

// The verdicts; a number above is the status that the proxy answers itself.
const (
	Pass       Verdict = iota
	LoseAnswer         // the request goes through, then the connection breaks
	Cut                // the connection breaks before the request goes through
	CutBody            // the request goes through, the connection breaks amid the answer's body
)

// Proxy is a bad link to an HTTP server.
type Proxy struct {
	target   string // host:port
	server   *http.Server
	listener net.Listener
	client   http.Transport
	judge    atomic.Pointer[func(*http.Request) Verdict]
	there    pace
	back     pace

	mu      sync.Mutex
	link    Link          // guarded by mu
	changed chan struct{} // guarded by mu: closed when link changes
}

// StartProxy starts a proxy for a test, and ends it.
func StartProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	p, err := NewProxy(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// NewProxy starts a proxy to the http:// URL of a server. Whoever calls it calls
// Close.
func NewProxy(ctx context.Context, target string) (*Proxy, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{target: strings.TrimPrefix(target, "http://"), listener: l, changed: make(chan struct{})}
	p.client.DisableCompression = true
	p.client.MaxIdleConnsPerHost = 64
	p.server = &http.Server{Handler: p, ReadHeaderTimeout: time.Minute}
	go func() { _ = p.server.Serve(l) }() // ends with Close
	return p, nil
}

// URL is the proxy's own http:// URL.
func (p *Proxy) URL() string { return "http://" + p.listener.Addr().String() }

// Close ends all connections.
func (p *Proxy) Close() {
	_ = p.server.Close()
	p.client.CloseIdleConnections()
}

// Bytes tells how many bytes of bodies went to the server, and came back.
func (p *Proxy) Bytes() (there, back int64) { return p.there.bytes.Load(), p.back.bytes.Load() }

// SetLink changes the link, for requests on their way too.
func (p *Proxy) SetLink(l Link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.link = l
	close(p.changed)
	p.changed = make(chan struct{})
}

// Judge has f decide about each request from now on; nil lets all pass. f is
// called from many goroutines.
func (p *Proxy) Judge(f func(*http.Request) Verdict) {
	if f == nil {
		p.judge.Store(nil)
		return
	}
	p.judge.Store(&f)
}

// Times gives a function for Judge: the first n requests of the method ("" is
// any) get the verdict, all others pass.
func Times(n int, method string, v Verdict) func(*http.Request) Verdict {
	var count atomic.Int64
	return func(r *http.Request) Verdict {
		if (method == "" || r.Method == method) && count.Add(1) <= int64(n) {
			return v
		}
		return Pass
	}
}

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	link, err := p.up(ctx)
	if err != nil || wait(ctx, link.Delay) != nil {
		panic(http.ErrAbortHandler) // the client left
	}
	verdict := Pass
	if judge := p.judge.Load(); judge != nil {
		verdict = (*judge)(r)
	}
	switch {
	case verdict == Cut:
		panic(http.ErrAbortHandler)
	case verdict > CutBody:
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(int(verdict))
		return
	}
	out := r.Clone(ctx)
	out.URL.Scheme, out.URL.Host, out.RequestURI = "http", p.target, "" // Host stays, it is signed
	if out.Body != nil && r.ContentLength != 0 {
		out.Body = &paced{ReadCloser: r.Body, proxy: p, pace: &p.there, ctx: ctx}
	} else {
		out.Body = http.NoBody
	}
	resp, err := p.client.RoundTrip(out)
	if err != nil {
		panic(http.ErrAbortHandler) // the server is away: so is what is behind the link
	}
	defer resp.Body.Close()
	if verdict == LoseAnswer {
		_, _ = io.Copy(io.Discard, resp.Body)
		panic(http.ErrAbortHandler)
	}
	if _, err := p.up(ctx); err != nil {
		panic(http.ErrAbortHandler)
	}
	for name, values := range resp.Header {
		w.Header()[name] = values
	}
	w.Header().Del("Connection") // of the server to us
	w.WriteHeader(resp.StatusCode)
	var body io.Reader = &paced{ReadCloser: resp.Body, proxy: p, pace: &p.back, ctx: ctx}
	if verdict == CutBody {
		body = io.LimitReader(body, resp.ContentLength/2)
	}
	if _, err := io.Copy(w, body); err != nil || verdict == CutBody {
		panic(http.ErrAbortHandler)
	}
}

// up waits until the link is up, and gives it.
func (p *Proxy) up(ctx context.Context) (Link, error) {
	for {
		p.mu.Lock()
		link, changed := p.link, p.changed
		p.mu.Unlock()
		if !link.Down {
			return link, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Link{}, ctx.Err()
		}
	}
}

// pace gives the bytes of a direction their turns.
type pace struct {
	bytes atomic.Int64 // that went

	mu   sync.Mutex
	free time.Time // guarded by mu: when the next byte may go
}

// maxLate is how late a timer is reckoned to be.
const maxLate = 10 * time.Millisecond

// turn gives how long to wait after n more bytes.
func (p *pace) turn(n int, rate int64) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	// A timer that was late is made up for, or each would cost rate.
	if earliest := now.Add(-maxLate); p.free.Before(earliest) {
		p.free = earliest
	}
	p.free = p.free.Add(time.Duration(n) * time.Second / time.Duration(rate))
	return p.free.Sub(now)
}

// paced is a body that goes over the link.
type paced struct {
	io.ReadCloser
	proxy *Proxy
	pace  *pace
	ctx   context.Context
}

// Read passes on what the link lets through.
func (b *paced) Read(p []byte) (int, error) {
	link, err := b.proxy.up(b.ctx)
	if err != nil {
		return 0, err
	}
	n, err := b.ReadCloser.Read(p)
	b.pace.bytes.Add(int64(n))
	if link.Rate > 0 && n > 0 {
		err = errors.Join(wait(b.ctx, b.pace.turn(n, link.Rate)), err)
		if errors.Is(err, io.EOF) {
			err = io.EOF
		}
	}
	return n, err
}

// wait lets a time go by.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
