"""The SQL that an analyst may use: every kind of syntax node and every function that the guard lets through.

It is a list of what is allowed, so what nobody thought of is refused. Left out on purpose: whatever reads files or runs
code, tells of the server or its accounts, waits, locks, keeps state, or makes much out of little (`repeat`).
Left out as well: what sqlglot would render with another meaning (`percentile_cont` in Spark).
"""

from sqlglot import exp

SYNTAX: frozenset[type[exp.Expression]] = frozenset(
    {
        *(exp.Select, exp.Union, exp.Except, exp.Intersect, exp.Subquery, exp.With, exp.CTE, exp.Values),
        *(exp.From, exp.Join, exp.Where, exp.Group, exp.Having, exp.Order, exp.Ordered, exp.Limit, exp.Offset),
        *(exp.Cube, exp.Rollup, exp.GroupingSets, exp.Distinct, exp.TableSample, exp.Lateral, exp.Version),
        *(exp.Table, exp.TableAlias, exp.Alias, exp.Column, exp.Identifier, exp.Star, exp.Dot, exp.Bracket),
        *(exp.Literal, exp.Boolean, exp.Null, exp.HexString, exp.BitString, exp.Interval, exp.Var, exp.Tuple),
        *(exp.Paren, exp.Window, exp.WindowSpec, exp.Filter, exp.WithinGroup, exp.IgnoreNulls, exp.RespectNulls),
        *(exp.DataType, exp.DataTypeParam, exp.Collate, exp.Escape, exp.PropertyEQ, exp.Slice),
        *(exp.And, exp.Or, exp.Xor, exp.Not, exp.Is, exp.In, exp.Between, exp.Exists, exp.Any, exp.All),
        *(exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.NullSafeEQ, exp.NullSafeNEQ),
        *(exp.Like, exp.ILike, exp.RegexpLike, exp.Add, exp.Sub, exp.Mul, exp.Div, exp.IntDiv, exp.Mod, exp.Neg),
        *(exp.DPipe, exp.BitwiseAnd, exp.BitwiseOr, exp.BitwiseXor, exp.BitwiseNot),
        *(exp.BitwiseLeftShift, exp.BitwiseRightShift),
        *(exp.JSONPath, exp.JSONPathRoot, exp.JSONPathKey, exp.JSONPathSubscript, exp.JSONPathWildcard),
    }
)

FUNCTIONS: frozenset[type[exp.Expression]] = frozenset(
    {
        # aggregates and windows
        *(exp.Count, exp.CountIf, exp.Sum, exp.Avg, exp.Min, exp.Max, exp.AnyValue, exp.First, exp.Last),
        *(exp.Stddev, exp.StddevPop, exp.StddevSamp, exp.Variance, exp.VariancePop, exp.Corr, exp.CovarPop),
        *(exp.CovarSamp, exp.RegrSlope, exp.Skewness, exp.Kurtosis, exp.Mode, exp.Median, exp.Quantile),
        *(exp.ApproxQuantile, exp.ApproxDistinct, exp.ArgMax, exp.ArgMin, exp.LogicalAnd, exp.LogicalOr),
        *(exp.GroupConcat, exp.ArrayUniqueAgg, exp.Grouping, exp.GroupingId),
        *(exp.RowNumber, exp.Rank, exp.DenseRank, exp.PercentRank, exp.CumeDist, exp.Ntile, exp.Lag, exp.Lead),
        *(exp.FirstValue, exp.LastValue, exp.NthValue),
        # choice and conversion
        *(exp.Case, exp.If, exp.Coalesce, exp.Nullif, exp.Nvl2, exp.Nanvl, exp.IsNan, exp.Greatest, exp.Least),
        *(exp.Cast, exp.TryCast, exp.Typeof),
        # numbers
        *(exp.Abs, exp.Round, exp.Floor, exp.Ceil, exp.Trunc, exp.Sqrt, exp.Cbrt, exp.Pow, exp.Exp, exp.Ln, exp.Log),
        *(exp.Sign, exp.Pi, exp.Degrees, exp.Radians, exp.Sin, exp.Cos, exp.Tan, exp.Rand, exp.WidthBucket),
        *(exp.SafeDivide, exp.BitwiseCount, exp.Hex, exp.Unhex),
        # text
        *(exp.Concat, exp.ConcatWs, exp.Length, exp.BitLength, exp.Lower, exp.Upper, exp.Initcap, exp.Trim),
        *(exp.Substring, exp.SubstringIndex, exp.Left, exp.Right, exp.Replace, exp.Translate, exp.Reverse),
        *(
            exp.StrPosition,
            exp.StartsWith,
            exp.EndsWith,
            exp.Contains,
            exp.Ascii,
            exp.Split,
            exp.SplitPart,
            exp.RegexpSplit,
            exp.Elt,
        ),
        *(exp.RegexpReplace, exp.RegexpExtract, exp.RegexpSubstr, exp.Encode, exp.Decode),
        *(exp.MD5, exp.SHA, exp.SHA2, exp.ToBase64, exp.FromBase64),
        # time
        *(exp.CurrentTimestamp, exp.CurrentDate, exp.UtcTimestamp, exp.Date, exp.Time, exp.Timestamp, exp.Extract),
        *(exp.Year, exp.Quarter, exp.Month, exp.Week, exp.WeekOfYear, exp.Day, exp.DayOfMonth, exp.DayOfWeek),
        *(exp.DayOfYear, exp.Hour, exp.Minute, exp.Second, exp.LastDay),
        *(exp.DateAdd, exp.DateSub, exp.DateDiff, exp.TsOrDsAdd, exp.TsOrDsDiff, exp.TimestampAdd, exp.TimestampDiff),
        *(exp.AddMonths, exp.MonthsBetween, exp.DateTrunc, exp.TimestampTrunc),
        *(exp.TimeToStr, exp.StrToDate, exp.StrToTime, exp.StrToUnix, exp.TimeStrToTime, exp.TsOrDsToDate),
        *(exp.TsOrDsToTimestamp, exp.UnixToStr, exp.UnixToTime, exp.UnixSeconds, exp.UnixMillis, exp.UnixMicros),
        # JSON, arrays, maps
        *(exp.JSONExtract, exp.JSONExtractScalar, exp.JSONKeys, exp.JSONFormat),
        *(exp.Array, exp.ArrayContains, exp.ArrayMax, exp.ArrayMin, exp.ArraySize, exp.ArrayToString),
        *(exp.ArraySort, exp.ArrayAgg, exp.VarMap),
        *(exp.MapKeys, exp.Struct, exp.Explode, exp.Posexplode),
    }
)

NAMED_FUNCTIONS: frozenset[str] = frozenset(
    {
        *(
            "bround",
            "conv",
            "date_part",
            "cardinality",
            "crc32",
            "every",
            "field",
            "format_number",
            "hash",
            "isnotnull",
            "isnull",
        ),
        *("json_array", "json_contains", "json_length", "json_unquote", "map_values", "microsecond", "now"),
        *("octet_length", "pmod", "some", "time_to_sec", "timediff", "timestamp_micros", "timestamp_millis"),
        *("timestamp_seconds", "unix_timestamp", "weekday", "window", "xxhash64"),
    }
)
"""Functions that sqlglot knows by name alone. To them come `predict_<application>`, one for each application."""

METADATA_TABLES: frozenset[str] = frozenset(
    {
        *("snapshots", "history", "refs", "files", "data_files", "delete_files", "all_files", "all_data_files"),
        *("entries", "all_entries", "manifests", "all_manifests", "partitions", "metadata_log_entries"),
    }
)
"""What Iceberg tells of a table, written after its name: `lake.digits.predictions.snapshots`."""
