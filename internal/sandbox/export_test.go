// SPDX-License-Identifier: Apache-2.0

package sandbox

// Compare is what reconciliation does every minute.
func (s *Service) Compare() error { return s.compare() }
