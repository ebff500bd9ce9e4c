// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"
)

// A source is one Go file of the tree, parsed.
type source struct {
	path string // relative to the root of the module, with slashes
	text []byte
	file *ast.File
}

// test tells whether the file is compiled into tests only.
func (s source) test() bool { return strings.HasSuffix(s.path, "_test.go") }

// dir is the directory of the file's package.
func (s source) dir() string {
	if i := strings.LastIndexByte(s.path, '/'); i >= 0 {
		return s.path[:i]
	}
	return "."
}

// A tree is all Go files of the checkout, in order of their paths.
type tree struct {
	root    string // absolute
	fset    *token.FileSet
	sources []source
}

// checkout parses the tree once for all tests.
var checkout = sync.OnceValues(func() (*tree, error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return nil, err
	}
	return parse(root)
})

// load is checkout for a test.
func load(t *testing.T) *tree {
	t.Helper()
	tr, err := checkout()
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// parse reads every Go file below root that belongs to the project: not what is
// hidden, built, fetched or a test's data.
func parse(root string) (*tree, error) {
	tr := &tree{root: root, fset: token.NewFileSet()}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path != root && foreign(d.Name()) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(d.Name(), ".go") {
			return nil
		}
		return tr.add(path)
	})
	if err != nil {
		return nil, err
	}
	sort.Slice(tr.sources, func(i, j int) bool { return tr.sources[i].path < tr.sources[j].path })
	return tr, nil
}

// foreign tells whether a directory holds nothing of the project's sources.
func foreign(name string) bool {
	return strings.HasPrefix(name, ".") || name == "testdata" || name == "node_modules" || name == "bin"
}

func (tr *tree) add(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(tr.root, path)
	if err != nil {
		return err
	}
	rel = filepath.ToSlash(rel)
	file, err := parser.ParseFile(tr.fset, rel, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	tr.sources = append(tr.sources, source{rel, text, file})
	return nil
}

// packages groups the sources by package directory.
func (tr *tree) packages() map[string][]source {
	byDir := map[string][]source{}
	for _, s := range tr.sources {
		byDir[s.dir()] = append(byDir[s.dir()], s)
	}
	return byDir
}

// calls gives the position of each use of name from the package imported as
// path, for instance Sleep of "time", under whatever name the file imports it.
func (tr *tree) calls(s source, path, name string) []token.Position {
	local := importName(s.file, path)
	if local == "" {
		return nil
	}
	var at []token.Position
	ast.Inspect(s.file, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok || sel.Sel.Name != name {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok && x.Name == local {
			at = append(at, tr.fset.Position(sel.Pos()))
		}
		return true
	})
	return at
}

// importName is the name under which file imports path, "" if it does not.
func importName(file *ast.File, path string) string {
	for _, spec := range file.Imports {
		if strings.Trim(spec.Path.Value, `"`) != path {
			continue
		}
		if spec.Name != nil {
			return spec.Name.Name
		}
		return path[strings.LastIndexByte(path, '/')+1:]
	}
	return ""
}
