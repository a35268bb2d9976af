"""The figures of a report: errors, groups, confusions, calibration."""
