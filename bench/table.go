// SPDX-License-Identifier: Apache-2.0

package main

import (
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

// table writes the rows as Markdown.
func table(w io.Writer, rows []row) {
	fmt.Fprintln(w, "| measure | workload | unit | oc: median (min–max) | bare engine | ratio |")
	fmt.Fprintln(w, "| --- | --- | --- | --- | --- | --- |")
	for _, r := range rows {
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |\n", r.measure, r.workload, r.unit, r.ours, r.bare, r.ratio())
	}
}
