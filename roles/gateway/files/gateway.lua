-- What HAProxy's own rules cannot do: read a model name out of any valid JSON, and refuse a body without cutting it off.

-- Index of the quote that closes the JSON string whose opening quote is at `start`.
local function closing_quote(body, start)
    local at = start + 1
    while true do
        at = body:find('["\\]', at)
        if not at or body:sub(at, at) == '"' then
            return at
        end
        at = at + 2
    end
end

local escapes = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }

local function unescape(text)
    return (text:gsub("\\(.)(%x?%x?%x?%x?)", function(letter, digits)
        if letter == "u" then
            return #digits == 4 and utf8.char(tonumber(digits, 16)) or ""
        end
        return (escapes[letter] or letter) .. digits
    end))
end

-- The string member "model" of the outermost object, or nil.
local function model_of(body)
    local at = body:match("^\xef?\xbb?\xbf?%s*(){")
    local depth = 0
    while at do
        local sign = body:sub(at, at)
        if sign == '"' then
            local closing = closing_quote(body, at)
            if not closing then
                return nil
            end
            if depth == 1 and unescape(body:sub(at + 1, closing - 1)) == "model" then
                local value = body:match('^%s*:%s*()"', closing + 1)
                if value then
                    local value_end = closing_quote(body, value)
                    return value_end and unescape(body:sub(value + 1, value_end - 1))
                end
            end
            at = closing
        elseif sign == "{" or sign == "[" then
            depth = depth + 1
        else
            depth = depth - 1
        end
        at = body:find('["{}%[%]]', at + 1)
    end
    return nil
end

-- json_query stops at 20 levels, at an escaped slash and at a byte order mark; this does not, and is slower.
core.register_action("find_model", { "http-req" }, function(txn)
    local body = txn.f:req_body()
    local model = body and model_of(body)
    if model then
        txn:set_var("txn.model", model)
    end
end)

-- Closing a connection on which the client still sends makes it lose the answer, so the body is read to its end first.
core.register_service("too_large", "http", function(applet)
    while #applet:receive(65536) > 0 do
    end
    local answer = applet:get_var("txn.answer")
    applet:set_status(413)
    applet:add_header("content-type", "application/json")
    applet:add_header("content-length", #answer)
    applet:start_response()
    applet:send(answer)
end)
