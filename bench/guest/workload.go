// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	pageBytes    = 4096
	fileBytes    = 300
	filesPerDir  = 1000
	maxFillMiB   = 1 << 20
	maxFileCount = 10_000_000
)

// workload is what the sandbox is made to hold.
type workload struct {
	memory []byte
	ticker *ticker
}

func (w *workload) do(words []string) (string, error) {
	switch {
	case len(words) == 2 && words[0] == "fill":
		return w.fill(words[1])
	case len(words) == 2 && words[0] == "change":
		return w.change(words[1])
	case len(words) == 3 && words[0] == "files":
		return files(words[1], words[2])
	case len(words) == 1 && words[0] == "tick":
		return w.tick()
	case len(words) == 1 && words[0] == "gap":
		return w.gap()
	case len(words) == 1 && words[0] == "sum":
		sum := crc32.Checksum(w.memory, crc32.MakeTable(crc32.Castagnoli))
		return fmt.Sprintf("%08x", sum), nil
	}
	return "", fmt.Errorf("unknown request %q", words)
}

// fill takes fresh memory outside the garbage collector's and makes each byte
// random, so that neither zero pages nor compression help anybody.
func (w *workload) fill(arg string) (string, error) {
	n, err := strconv.Atoi(arg)
	if err != nil || n < 1 || n > maxFillMiB {
		return "", fmt.Errorf("not a number of MiB: %q", arg)
	}
	if w.memory != nil {
		return "", errors.New("filled already")
	}
	w.memory, err = unix.Mmap(-1, 0, n<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return "", err
	}
	random(w.memory)
	return "ok", nil
}

// change makes a part of the memory's pages random anew, in any order.
func (w *workload) change(arg string) (string, error) {
	percent, err := strconv.Atoi(arg)
	if err != nil || percent < 1 || percent > 100 {
		return "", fmt.Errorf("not a part in percent: %q", arg)
	}
	pages, source := len(w.memory)/pageBytes, newRandom()
	if pages == 0 {
		return "", errors.New("nothing is filled")
	}
	for _, p := range rand.Perm(pages)[:max(1, pages*percent/100)] {
		_, _ = source.Read(w.memory[p*pageBytes:][:pageBytes]) // never fails
	}
	return "ok", nil
}

func random(b []byte) {
	_, _ = newRandom().Read(b) // never fails
}

func newRandom() *rand.ChaCha8 {
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(rand.Uint32())
	}
	return rand.NewChaCha8(seed)
}

func files(dir, arg string) (string, error) {
	n, err := strconv.Atoi(arg)
	if err != nil || n < 1 || n > maxFileCount {
		return "", fmt.Errorf("not a number of files: %q", arg)
	}
	content := make([]byte, fileBytes)
	for i := range n {
		d := filepath.Join(dir, strconv.Itoa(i/filesPerDir))
		if i%filesPerDir == 0 {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return "", err
			}
		}
		random(content)
		if err := os.WriteFile(filepath.Join(d, strconv.Itoa(i%filesPerDir)), content, 0o644); err != nil {
			return "", err
		}
	}
	return "ok", nil
}
