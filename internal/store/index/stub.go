// Package index stub.
package index

import "sync"

// Location stub.
type Location struct {
	Pack, Segment uint32
	Slot          uint16
}

// Index stub.
type Index struct {
	mu    sync.Mutex
	m     map[[32]byte]Location
	names []string
	tabs  [][]byte
}

// Open stub.
func Open(string) (*Index, error) { return &Index{m: map[[32]byte]Location{}}, nil }

// Close stub.
func (ix *Index) Close() error { return nil }

// Lookup stub.
func (ix *Index) Lookup(hashes [][32]byte, found func(int, Location)) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	for i, h := range hashes {
		if l, ok := ix.m[h]; ok && ix.names[l.Pack] != "" {
			found(i, l)
		}
	}
}

// Pack stub.
func (ix *Index) Pack(n uint32) (string, []byte, bool) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	return ix.names[n], ix.tabs[n], ix.names[n] != ""
}

// AddPack stub.
func (ix *Index) AddPack(name string, table []byte, hashes [][][32]byte) error {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	n := uint32(len(ix.names))
	ix.names, ix.tabs = append(ix.names, name), append(ix.tabs, table)
	for s, hs := range hashes {
		for k, h := range hs {
			ix.m[h] = Location{n, uint32(s), uint16(k)}
		}
	}
	return nil
}

// RemovePack stub.
func (ix *Index) RemovePack(name string) error {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	for i := range ix.names {
		if ix.names[i] == name {
			ix.names[i] = ""
		}
	}
	return nil
}

// HasPack stub.
func (ix *Index) HasPack(name string) bool {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	for _, n := range ix.names {
		if n == name {
			return true
		}
	}
	return false
}
