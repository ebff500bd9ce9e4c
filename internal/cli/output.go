// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// columnGap separates the columns of a table.
const columnGap = "  "

// writeTable prints rows below a header, each column as wide as its widest
// cell, the last one unpadded.
func writeTable(w io.Writer, header []string, rows [][]string) error {
	lines := make([][]string, 0, len(rows)+1)
	lines = append(lines, header)
	widths := make([]int, len(header))
	for _, row := range rows {
		clean := make([]string, len(row))
		for i, cell := range row {
			clean[i] = printable(cell)
		}
		lines = append(lines, clean)
	}
	for _, line := range lines {
		for i, cell := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, line := range lines {
		for i, cell := range line {
			b.WriteString(cell)
			if i < len(line)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)))
				b.WriteString(columnGap)
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeJSON prints one document with two spaces of indent and a newline.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printable replaces what could steer a terminal: names and messages come from
// sandboxes and servers.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// printableLines is printable for a text that may have several lines.
func printableLines(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	for i, line := range lines {
		lines[i] = printable(line)
	}
	return strings.Join(lines, "\n")
}

// megabytes formats a size in bytes, "-" for an unknown one.
func megabytes(n int64) string {
	if n <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f MB", float64(n)/(1<<20))
}

// size formats a known size in bytes.
func size(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/(1<<20)) }

// timestamp formats a time in UTC with seconds; unset is what a missing one
// prints.
func timestamp(t time.Time, unset string) string {
	if t.IsZero() {
		return unset
	}
	return t.UTC().Format("2006-01-02T15:04:05Z")
}

// terminalFD gives the descriptor of a stream that is a terminal.
func terminalFD(stream any) (fd int, ok bool) {
	f, isFile := stream.(*os.File)
	if !isFile || f == nil {
		return 0, false
	}
	fd = int(f.Fd())
	return fd, term.IsTerminal(fd)
}
