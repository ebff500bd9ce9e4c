// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"errors"
	"go/ast"
	"go/token"
	"go/types"
	"testing"
)

// sharedState are the package-level variables that may change while the program
// runs, as package directory + "." + name, each with its reason.
var sharedState = map[string]string{
	"internal/engine/gvisor/runsc.precompiledPrograms": "is gVisor's own table, which has no exported way in",
}

// TestNoPackageState keeps state in values that somebody owns: a package-level
// variable that is written to couples every user of the package, and every two
// tests. Tables that are only read are fine, and so are variables that only
// the linker sets.
func TestNoPackageState(t *testing.T) {
	t.Parallel()
	tr := load(t)
	used := map[string]bool{}
	for dir, sources := range tr.packages() {
		for name, at := range stateOf(tr.fset, dir, sources) {
			key := dir + "." + name
			used[key] = true
			if sharedState[key] == "" {
				t.Errorf("%s: package-level variable %s changes at run time: give it an owner, or a reason in sharedState", at, name)
			}
		}
	}
	for key := range sharedState {
		if !used[key] {
			t.Errorf("sharedState: %s does not change any more: take it out", key)
		}
	}
}

// stateOf gives the package-level variables of one package, tests aside, that
// are assigned to in a function, have their address taken, or are of a type
// that exists to be changed; with one place that shows it.
//
// Only names within the package have to be resolved, so imports are not: their
// absence is an error that the type checker reports and that is dropped.
func stateOf(fset *token.FileSet, dir string, sources []source) map[string]token.Position {
	var files []*ast.File
	for _, s := range sources {
		if !s.test() {
			files = append(files, s.file)
		}
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	conf := types.Config{Error: func(error) {}, Importer: noImports{}, DisableUnusedImportCheck: true}
	pkg, _ := conf.Check(dir, fset, files, info)
	if pkg == nil {
		return nil
	}
	state := map[string]token.Position{}
	changed := func(e ast.Expr) {
		if id := base(e); id != nil {
			if v, ok := info.Uses[id].(*types.Var); ok && v.Parent() == pkg.Scope() {
				state[v.Name()] = fset.Position(id.Pos())
			}
		}
	}
	for _, f := range files {
		for _, decl := range f.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				ast.Inspect(d, func(n ast.Node) bool { writes(n, changed); return true })
			case *ast.GenDecl:
				for _, id := range changeable(d) {
					state[id.Name] = fset.Position(id.Pos())
				}
			}
		}
	}
	return state
}

// writes calls changed for each operand that the statement n writes to, or
// whose address it takes.
func writes(n ast.Node, changed func(ast.Expr)) {
	switch n := n.(type) {
	case *ast.AssignStmt:
		if n.Tok != token.DEFINE {
			for _, lhs := range n.Lhs {
				changed(lhs)
			}
		}
	case *ast.IncDecStmt:
		changed(n.X)
	case *ast.UnaryExpr:
		if n.Op == token.AND {
			changed(n.X)
		}
	case *ast.RangeStmt:
		if n.Tok == token.ASSIGN {
			changed(n.Key)
			changed(n.Value)
		}
	case *ast.CallExpr:
		if fn, ok := n.Fun.(*ast.Ident); ok && len(n.Args) > 0 && (fn.Name == "delete" || fn.Name == "clear") {
			changed(n.Args[0])
		}
	}
}

// base is the variable that an assignment to e would change: v in v, v.f, v[i],
// *v.
func base(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return nil
		}
	}
}

// changeable gives the variables of a declaration whose written type is a lock,
// an atomic or the like: these are changed through methods.
func changeable(d *ast.GenDecl) []*ast.Ident {
	if d.Tok != token.VAR {
		return nil
	}
	var ids []*ast.Ident
	for _, spec := range d.Specs {
		v, ok := spec.(*ast.ValueSpec)
		if !ok {
			continue
		}
		typ := v.Type
		if ix, ok := typ.(*ast.IndexExpr); ok { // atomic.Pointer[T]
			typ = ix.X
		}
		sel, ok := typ.(*ast.SelectorExpr)
		if !ok {
			continue
		}
		if x, ok := sel.X.(*ast.Ident); ok && (x.Name == "sync" || x.Name == "atomic") && sel.Sel.Name != "Pool" {
			ids = append(ids, v.Names...)
		}
	}
	return ids
}

// noImports resolves nothing.
type noImports struct{}

func (noImports) Import(string) (*types.Package, error) { return nil, errors.New("not looked up") }
