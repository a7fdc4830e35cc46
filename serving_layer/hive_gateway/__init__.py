"""The Hive gateway: one SQL endpoint (HiveServer2's protocol) over the lake and over MySQL, for analysts who read."""
