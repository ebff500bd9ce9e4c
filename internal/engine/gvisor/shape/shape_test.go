// SPDX-License-Identifier: Apache-2.0

package shape

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencomputer/oc/internal/engine"
)

func TestApply(t *testing.T) {
	t.Parallel()
	bundle, empty, broken, zero := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	if err := Write(bundle, engine.Shape{CPUs: 3, MemoryBytes: 1 << 30, DiskBytes: 5, PidsMax: 7}); err != nil {
		t.Fatal(err)
	}
	if err := Write(zero, engine.Shape{}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(broken, fileName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	set := []string{"--cpu-num=3", "--total-memory=1073741824"}
	list := func(parts ...[]string) []string { return slices.Concat(parts...) }
	head := []string{"/usr/bin/runsc-sandbox", "--root=/r", "--log-fd=3", "boot"}
	b := "--bundle=" + bundle
	for _, tt := range []struct {
		name     string
		in, want []string
	}{
		{"flags are added", list(head, []string{b, "gn-1"}), list(head, set, []string{b, "gn-1"})},
		{"flags are replaced", list(head, []string{"--cpu-num=2", b, "--total-memory=99", "gn-1"}), list(head, set, []string{b, "gn-1"})},
		{"flags of two words are replaced", list(head, []string{"--cpu-num", "2", b, "--total-memory", "99", "gn-1"}), list(head, set, []string{b, "gn-1"})},
		{"flags before the verb are not ours", list([]string{"runsc-sandbox", "--cpu-num=2", "boot"}, []string{b}), list([]string{"runsc-sandbox", "--cpu-num=2", "boot"}, set, []string{b})},
		{"similar flags stay", list(head, []string{"--cpu-num-from-quota", "--total-host-memory=5", b}), list(head, set, []string{"--cpu-num-from-quota", "--total-host-memory=5", b})},
		{"a flag at the end without its value", list(head, []string{b, "--cpu-num"}), list(head, set, []string{b, "--cpu-num"})},
		{"the last bundle counts", list(head, []string{"--bundle=" + empty, b}), list(head, set, []string{"--bundle=" + empty, b})},
		{"a bundle without a shape", list(head, []string{"--bundle=" + empty}), nil},
		{"a broken shape", list(head, []string{"--bundle=" + broken}), nil},
		{"a shape of nothing", list(head, []string{"--bundle=" + zero}), nil},
		{"no bundle", list(head, []string{"gn-1"}), nil},
		{"another verb", []string{"runsc-sandbox", "umount", b}, nil},
		{"another process", []string{"runsc-gofer", "boot", b}, nil},
		{"our own command line", []string{"oc", "boot", b}, nil},
		{"only a name", []string{"runsc-sandbox"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			want := tt.want
			if want == nil {
				want = tt.in
			}
			in := slices.Clone(tt.in)
			got, ours := Apply(tt.in)
			if ours != (tt.want != nil) {
				t.Errorf("has a shape: %v", ours)
			}
			if !slices.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
			if !slices.Equal(in, tt.in) {
				t.Error("the given argv was changed")
			}
			if again, _ := Apply(got); !slices.Equal(again, got) {
				t.Errorf("applied again it gives %q", again)
			}
		})
	}
}

func TestWriteFails(t *testing.T) {
	t.Parallel()
	if err := Write(filepath.Join(t.TempDir(), "missing"), engine.Shape{CPUs: 1, MemoryBytes: 1}); err == nil {
		t.Error("written into a directory that does not exist")
	}
}
