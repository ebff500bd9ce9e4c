// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"go/parser"
	"go/token"
	"maps"
	"slices"
	"testing"
)

// TestStateOf checks the check: what it has to find, and what it must let pass.
func TestStateOf(t *testing.T) {
	t.Parallel()
	const text = `package p

import ("errors"; "sync"; "sync/atomic"; "other")

var (
	ErrRead   = errors.New("read only")
	table     = map[string]int{"a": 1}
	linked    = "set by the linker"
	counter   int
	cache     = map[string]int{}
	config    struct{ depth int }
	list      []int
	escaped   other.Thing
	mu        sync.Mutex
	current   atomic.Pointer[int]
	reused    = sync.Pool{New: func() any { return new(int) }}
	shadowed  = 1
)

func f() int {
	counter++
	cache["x"] = 2
	config.depth = 3
	list = append(list, 4)
	other.Use(&escaped)
	shadowed := 2
	shadowed = 3
	return table["a"] + shadowed + len(linked)
}
`
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "p.go", text, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	got := slices.Sorted(maps.Keys(stateOf(fset, "p", []source{{"p.go", []byte(text), file}})))
	want := []string{"cache", "config", "counter", "current", "escaped", "list", "mu"}
	if !slices.Equal(got, want) {
		t.Errorf("stateOf = %v, want %v", got, want)
	}
}
