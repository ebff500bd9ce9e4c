// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"io"
)

// row is one line of the table: a measure of a workload, ours and the bare
// engine's.
type row struct {
	measure  string
	unit     string
	workload string
	ours     sample
	bare     sample
}

// ratio is ours through the bare engine's, "–" where one is missing.
func (r row) ratio() string {
	if len(r.ours) == 0 || len(r.bare) == 0 || r.bare.median() == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", r.ours.median()/r.bare.median())
}

// promise is a line of the table of what is promised: a measure, what it is
// compared with, and what is wanted.
type promise struct {
	measure string
	unit    string
	ours    sample
	beside  string // what the other one is
	other   sample
	wanted  string // of the ratio, or where there is none of the measure; "" is nothing
}

// ratio has one more digit than a row's where it is small.
func (p promise) ratio() string {
	if r := p.ours.median() / p.other.median(); r < 0.1 {
		return fmt.Sprintf("%.3f", r)
	}
	return row{ours: p.ours, bare: p.other}.ratio()
}

// promisedTable writes the promises as Markdown.
func promisedTable(w io.Writer, all []promise) {
	fmt.Fprintln(w, "| measure | unit | oc: median (min–max) | beside it | ratio | wanted |")
	fmt.Fprintln(w, "| --- | --- | --- | --- | --- | --- |")
	for _, p := range all {
		beside := "–"
		if len(p.other) > 0 {
			beside = fmt.Sprintf("%s: %s", p.beside, p.other)
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |\n", p.measure, p.unit, p.ours, beside, p.ratio(), cmp.Or(p.wanted, "–"))
	}
}

// table writes the rows as Markdown.
func table(w io.Writer, rows []row) {
	fmt.Fprintln(w, "| measure | workload | unit | oc: median (min–max) | bare engine | ratio |")
	fmt.Fprintln(w, "| --- | --- | --- | --- | --- | --- |")
	for _, r := range rows {
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |\n", r.measure, r.workload, r.unit, r.ours, r.bare, r.ratio())
	}
}
