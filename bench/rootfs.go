// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

const (
	guestPath = "/bin/guest" // the workload, package guest
	okPath    = "/bin/ok"    // the first command: prints okAnswer and exits
	okAnswer  = "ok\n"
)

// buildGuest compiles the workload to a static binary.
func buildGuest(ctx context.Context, to string) error {
	c := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w",
		"-o", to, "github.com/opencomputer/oc/bench/guest")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("building the guest program: %w: %s", err, out)
	}
	return nil
}

// rootfs is a root file system as a tar archive: the guest program and okELF.
// What a larger one would cost is the image's, which both sides share.
func rootfs(ctx context.Context, dir string) ([]byte, error) {
	guest := filepath.Join(dir, "guest")
	if err := buildGuest(ctx, guest); err != nil {
		return nil, err
	}
	program, err := os.ReadFile(guest)
	if err != nil {
		return nil, fmt.Errorf("reading the guest program: %w", err)
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range []struct {
		name    string
		content []byte
	}{{guestPath, program}, {okPath, okELF()}} {
		h := &tar.Header{Name: f.name[1:], Mode: 0o755, Size: int64(len(f.content)), Typeflag: tar.TypeReg}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("packing the root file system: %w", err)
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, fmt.Errorf("packing the root file system: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("packing the root file system: %w", err)
	}
	return out.Bytes(), nil
}

// okELF is the smallest program that answers: an x86-64 executable that writes
// okAnswer to standard output and exits. A larger one would spend the time that
// is measured on its own start.
func okELF() []byte {
	code := []byte{
		0xb8, 1, 0, 0, 0, // mov eax, 1 (write)
		0xbf, 1, 0, 0, 0, // mov edi, 1
		0x48, 0x8d, 0x35, 16, 0, 0, 0, // lea rsi, [rip+16], the answer
		0xba, byte(len(okAnswer)), 0, 0, 0, // mov edx, len
		0x0f, 0x05, // syscall
		0xb8, 231, 0, 0, 0, // mov eax, 231 (exit_group)
		0x31, 0xff, // xor edi, edi
		0x0f, 0x05, // syscall
	}
	code = append(code, okAnswer...)
	const base, headers = 0x400000, 64 + 56
	size := uint64(headers + len(code))
	var b bytes.Buffer
	b.Write([]byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	for _, v := range []any{
		// File header (elf(5)): type EXEC, machine x86-64.
		uint16(2), uint16(62), uint32(1), uint64(base + headers), uint64(64), uint64(0), uint32(0),
		uint16(64), uint16(56), uint16(1), uint16(0), uint16(0), uint16(0),
		// One segment: LOAD, readable and executable, the whole file.
		uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), size, size, uint64(0x1000),
	} {
		_ = binary.Write(&b, binary.LittleEndian, v) // a buffer takes all
	}
	b.Write(code)
	return b.Bytes()
}
