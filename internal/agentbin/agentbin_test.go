// SPDX-License-Identifier: Apache-2.0

package agentbin

import (
	"bytes"
	"errors"
	"testing"
	"testing/fstest"
)

func TestRead(t *testing.T) {
	t.Parallel()
	elf := []byte("\x7fELF and the rest")
	for _, tc := range []struct {
		name string
		fsys fstest.MapFS
		want []byte
		err  error
	}{
		{"built", fstest.MapFS{name: {Data: elf}}, elf, nil},
		{"not built", fstest.MapFS{"bin/README": {Data: []byte("x")}}, nil, ErrMissing},
		{"build cut short", fstest.MapFS{name: {}}, nil, ErrMissing},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := read(tc.fsys)
			if !errors.Is(err, tc.err) || !bytes.Equal(got, tc.want) {
				t.Errorf("read() = %q, %v; want %q, %v", got, err, tc.want, tc.err)
			}
		})
	}
}

// TestCallerOwnsTheBytes pins that a caller may change what it got.
func TestCallerOwnsTheBytes(t *testing.T) {
	t.Parallel()
	fsys := fstest.MapFS{name: {Data: []byte("agent")}}
	first, err := read(fsys)
	if err != nil {
		t.Fatal(err)
	}
	first[0] = 'X'
	second, err := read(fsys)
	if err != nil || second[0] != 'a' {
		t.Errorf("second read = %q, %v; want the bytes as they were", second, err)
	}
}
